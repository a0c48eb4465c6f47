"""Capabilities of the processor."""

from __future__ import annotations

from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
# What the first processor has stands in the beginning; all of them may take long to be asked.
_CPUINFO_BYTES = 8192
# As x86 and ARM call them.
_SHA256 = frozenset((b"sha_ni", b"sha2"))


def has_sha256() -> bool:
    """Return whether there are instructions for SHA-256; False if that is unknown."""
    try:
        with _CPUINFO.open("rb", buffering=0) as file:
            described = file.read(_CPUINFO_BYTES)
    except OSError:
        return False
    return not _SHA256.isdisjoint(described.split())
