"""Durations as Go writes them: `2s`, `1m30s`, `500ms`."""

import re

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def seconds(text: str) -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: it is none.
    """
    if text == "0":
        return 0.0
    if not text or _PART.sub("", text):
        raise ValueError(f"expected a duration such as 2s or 500ms, got {text!r}")
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
