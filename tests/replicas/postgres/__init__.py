"""Tests of kvd.replicas.etcd."""
