"""Connections to the other replicas."""
