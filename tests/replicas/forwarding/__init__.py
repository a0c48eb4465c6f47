"""Tests of kvd.replicas.forwarding."""
