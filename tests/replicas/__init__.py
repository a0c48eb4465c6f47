"""Tests of kvd.replicas."""
