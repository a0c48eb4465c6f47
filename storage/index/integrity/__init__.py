"""Checks of an index before it is used: pages, rows, and what its file tells without LMDB."""
