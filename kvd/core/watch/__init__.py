"""Watches: who waits for which events, and what recent ones were of."""
