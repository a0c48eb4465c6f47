"""Verbs of a server that etcdctl does not have."""
