"""The tables of an index, and their rows as snapshots hold them."""

from collections.abc import Callable

TABLES = (b"nodes", b"ttl", b"events", b"garbage", b"meta", b"entries")
"""Snapshots name them by their place here: new ones come last."""

Row = tuple[int, bytes, bytes]
"""Table number, key, value."""
Find = Callable[[int, bytes], bytes | None]
"""Looks up a row by the number of its table and its key."""
