"""Tests of kvd.replicas.upkeep."""
