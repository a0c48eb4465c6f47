"""Replicas: servers that share one store, whose log is kept by a consensus engine.

Imported only by a server that is one of several.
"""
