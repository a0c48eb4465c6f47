"""The index in LMDB, and the state in memory that is ahead of it."""
