"""Text as Go's fmt package prints it, for causes and messages that clients compare."""

from __future__ import annotations

# What Go's %q has names for.
_NAMED = {ord(c): rf"\{name}" for c, name in zip('\a\b\f\n\r\t\v\\"', 'abfnrtv\\"', strict=True)}
_S_NS = 1_000_000_000


def quote(raw: bytes) -> bytes:
    """Return text in double quotes as Go's %q prints it."""
    # What is no UTF-8 becomes lone surrogates, U+DC80 and up, whose low byte is the byte.
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return b'"%b"' % raw.replace(b"\\", rb"\\").replace(b'"', rb"\"")
    shown = []
    for character in text:
        code = ord(character)
        if code in _NAMED:
            shown.append(_NAMED[code])
        elif character.isprintable():
            shown.append(character)
        else:
            is_byte = code < 0x80 or 0xDC80 <= code <= 0xDCFF
            wide = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
            shown.append(f"\\x{code & 0xFF:02x}" if is_byte else wide)
    return f'"{"".join(shown)}"'.encode()


def go_duration(ns: int) -> str:
    """Return a duration as Go prints it: `2m23.1s`, `1h0m5s`, `350.5ms`, `0s`."""
    if ns < _S_NS:
        for unit, size in (("ms", 1_000_000), ("µs", 1_000)):
            if ns >= size:
                return _decimal(ns, size) + unit
        return f"{ns}ns" if ns else "0s"
    minutes, rest_ns = divmod(ns, 60 * _S_NS)
    hours, minutes = divmod(minutes, 60)
    text = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return text + _decimal(rest_ns, _S_NS) + "s"


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    digits = len(str(unit)) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0")
    return f"{whole}.{fraction}" if fraction else str(whole)
