"""Clients that were written for etcd, run unchanged against kvd.

What pip puts into the environment, and etcdctl where it is installed, is tried in every run; the
rest, which `scripts/setup-clients` installs, by `pytest -m clients`.
"""
