"""Tests of kvd.replicas.peers."""
