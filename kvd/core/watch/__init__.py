"""Watches: live watchers, replays of history, and an index of recent events."""
