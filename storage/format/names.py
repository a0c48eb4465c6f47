"""The names of files and folders in a data directory."""

import re

SUBDIRECTORIES = ("wal", "snap", "index", "quarantine")
SPARE_NAME = "next.tmp"
"""The next segment of the log, before it is one."""

SEGMENT_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.wal")
"""A segment of the log: its number, and the sequence number of its first frame."""

SNAPSHOT_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.snap")
BROKEN_SNAPSHOT_NAME = re.compile(SNAPSHOT_NAME.pattern + r"(\.broken)?")
"""A snapshot, or one that was set aside."""


def segment_name(number: int, first_seq: int) -> str:
    """Return the file name of a segment."""
    return f"{number:016x}-{first_seq:016x}.wal"
