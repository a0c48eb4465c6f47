"""Limits that clients share: turns of the event loop, memory, connections."""
