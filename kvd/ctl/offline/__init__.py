"""Verbs that work on the files of a store, without a server."""
