"""Times as Go writes them in JSON (RFC 3339), in nanoseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_EPOCH = datetime.fromtimestamp(0, UTC)
NS = 1_000_000_000


def parse(text: str) -> int:
    """Return a time; negative before 1970, and less than 64 bits.

    Raises:
        ValueError: it is none.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time like 2026-11-23T02:50:00.5Z")
    time_ns = _seconds(match[1], match[3]) * NS + int((match[2] or "0").ljust(9, "0"))
    if time_ns >= 1 << 64:
        raise ValueError(f"{text} is later than a key can end, in July 2554")
    return time_ns


@lru_cache(maxsize=1024)
def _seconds(time: str, zone: str) -> int:
    try:
        since = datetime.fromisoformat(time + zone) - _EPOCH
    except (ValueError, OverflowError):
        raise ValueError(f"{time}{zone} is no time") from None
    return since // timedelta(seconds=1)


def render(time_ns: int) -> str:
    """Return a time in UTC, with nine digits after the point."""
    seconds, rest = divmod(time_ns, NS)
    return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
