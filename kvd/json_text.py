r"""JSON strings as Go's encoder writes them, and bodies in which large strings are not escaped yet.

Go escapes for HTML: `<`, `>`, `&`, U+2028 and U+2029 become \u escapes, control characters \u00xx
but for \n, \r and \t; each byte that is no UTF-8 becomes \ufffd.

A large value stays one object for all the responses that show it, and is escaped slice by slice as
it is sent: escaped, it takes six times its memory at worst. So a body is a list of parts: bytes
that are ready to be sent, and values that are not.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PLAIN = bytes(set(range(0x20, 0x80)) - set(b'"\\<>&'))
"""Bytes that need no escape inside a JSON string."""

# In the order in which they are made: the backslash first, which the others put in.
_OFTEN = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"))
_SELDOM = {c: (bytes((c,)), b"\\u%04x" % c) for c in (*b"<>&", *range(0x20))}
_SELDOM |= {ord("\r"): (b"\r", b"\\r"), ord("\t"): (b"\t", b"\\t")}
_LINE_ENDS = (("\u2028".encode(), b"\\u2028"), ("\u2029".encode(), b"\\u2029"))
_NOT_SELDOM = b'\\"\n' + bytes(range(0x80, 0x100))


# A byte that is no UTF-8, decoded to a lone surrogate and encoded again.
_LONE_SURROGATE = re.compile(rb"\xed[\xb2\xb3][\x80-\xbf]")

LARGE_VALUE_BYTES = 64 << 10
"""A larger value is not rendered at once: it is a part of its own, see `LargeValue`."""


class LargeValue(NamedTuple):
    """A value as a part of a body, escaped as it is sent; `changed` is the index of its change."""

    changed: int
    raw: bytes


Parts = list[bytes | LargeValue]
"""A body in parts."""


def is_plain(raw: bytes) -> bool:
    """Return whether bytes need no escape inside a JSON string."""
    return not raw.translate(None, PLAIN)


def escape(raw: bytes) -> bytes:
    """Return bytes escaped for a JSON string, without its quotes."""
    # Deleting what is plain runs at memory speed and nearly always leaves nothing.
    special = raw.translate(None, PLAIN)
    if not special:
        return raw
    for found, escaped in _OFTEN:
        if found in special:
            raw = raw.replace(found, escaped)
    for byte in set(special.translate(None, _NOT_SELDOM)):
        raw = raw.replace(*_SELDOM[byte])
    return raw if special.isascii() else _escape_wide(raw)


def _escape_wide(raw: bytes) -> bytes:
    """Return bytes, of which the ASCII ones are escaped, escaped for a JSON string."""
    for found, escaped in _LINE_ENDS:
        raw = raw.replace(found, escaped)
    try:
        raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("utf-8", "surrogateescape").encode("utf-8", "surrogatepass")
        return _LONE_SURROGATE.sub(rb"\\ufffd", text)
    return raw


def cut(raw: bytes, end: int) -> int:
    """Return where bytes may be cut, at `end` or up to three before: not inside a character.

    The escaped pieces of bytes that are cut there are, together, the bytes escaped.
    """
    if end >= len(raw):
        return len(raw)
    for place in range(end, max(end - 4, -1), -1):
        if raw[place] & 0xC0 != 0x80:
            return place
    # Four continuation bytes in a row: the last one belongs to no character.
    return end


def joined(parts: Parts) -> Parts:
    """Return parts with adjacent ones joined."""
    together: Parts = []
    run: list[bytes] = []
    for part in parts:
        if isinstance(part, bytes):
            run.append(part)
        else:
            together += [b"".join(run), part] if run else [part]
            run = []
    return [*together, b"".join(run)] if run else together
