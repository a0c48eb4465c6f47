r"""JSON as Go's encoding/json reads and writes it: what it takes, what it refuses, in its words.

Values are None, bool, float, str and list as usual. An object that was read is a tuple of its pairs
in their order, because Go matches names without regard to case and lets the last of two count; one
to be written is a dict. Text that is no UTF-8 is held with lone surrogates and written as \ufffd.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Never

from kvd.json_text import escape
from kvd.v2.go_text import quote

Value = None | bool | float | str | Sequence["Value"] | Mapping[str, "Value"]
Pairs = tuple[tuple[str, Value], ...]

_BLANKS = " \t\r\n"
_DEPTH_MAX = 10_000
_SURROGATES = re.compile("[\ud800-\udfff]")

_BLANK_RUN = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*')
_HEX = re.compile(rb"[0-9A-Fa-f]{0,4}")
_INTEGER = re.compile(rb"0|[1-9][0-9]*")
_DIGITS = re.compile(rb"[0-9]+")
_LITERALS = {b"t": b"true", b"f": b"false", b"n": b"null"}
_CLOSING = {b"{": b"}", b"[": b"]"}
_NAMES = {type(None): "null", bool: "bool", float: "number", str: "string", list: "array"}


class Malformed(ValueError):
    """It is no JSON, or not the JSON that is wanted; the text is Go's."""


def encode(value: Value) -> bytes:
    """Return a value as Go writes it, without a newline behind it."""
    if isinstance(value, str):
        return b'"' + escape(value.encode("utf-8", "surrogateescape")) + b'"'
    if isinstance(value, Mapping):
        fields = (encode(name) + b":" + encode(field) for name, field in value.items())
        return b"{" + b",".join(fields) + b"}"
    if isinstance(value, Sequence):
        return b"[" + b",".join(map(encode, value)) + b"]"
    return json.dumps(value).encode()


def decode(data: bytes, *, whole: bool = True, explain: bool = True) -> Value:
    """Return the value of JSON text.

    Args:
        data: JSON.
        whole: nothing but blanks may follow (Go's Unmarshal); else anything may (its Decoder).
        explain: find out what Go would say of it; that takes a second for a megabyte.

    Raises:
        Malformed: it is no JSON.
    """
    text = data.decode("utf-8", "surrogateescape").lstrip(_BLANKS)
    value: Value
    try:
        value, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        pass
    else:
        if not whole or not text[end:].strip(_BLANKS):
            return value
    raise Malformed((_complaint(data) if explain else None) or "exceeded max depth")


def fields(value: Value, names: Sequence[str]) -> Iterator[tuple[str, Value]]:
    """Yield the pairs of an object whose names are wanted, each under the name as it is wanted."""
    assert isinstance(value, tuple)
    for given, field in value:
        folded = given.lower().replace("\u017f", "s")  # Go folds the long s, too
        for name in names:
            if folded == name.lower():
                yield name, field


def text_of(value: Value) -> str:
    """Return a string as Go holds it: what is no text is U+FFFD.

    Raises:
        Malformed: it is neither a string nor null.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(name_of(value))
    return _SURROGATES.sub("\ufffd", value)


def name_of(value: Value) -> str:
    """Return what Go calls the type of a value that was read."""
    return _NAMES.get(type(value), "object")


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON")


# A number is never used, only told from other things: any float does.
_DECODER = json.JSONDecoder(
    object_pairs_hook=tuple, parse_int=float, parse_float=float, parse_constant=_no_constant
)


class _SyntaxError(Exception):
    """The first byte that Go's scanner does not take (None: the end), and where that is."""

    def __init__(self, byte: bytes, where: str) -> None:
        # The scanner meets the end of the text as a blank.
        shown = quote(chr(ord(byte or b" ")).encode()).decode()[1:-1]
        shown = {'\\"': '"', "'": "\\'"}.get(shown, shown)
        super().__init__(f"invalid character '{shown}' {where}")


class _Unfinished(Exception):
    """The text ends where more could follow."""


def _complaint(data: bytes) -> str | None:
    """Return what Go's scanner says of a text; None where it finds nothing wrong."""
    try:
        _scan(data)
    except _SyntaxError as error:
        return str(error)
    except _Unfinished:
        return "unexpected end of JSON input"
    return None


def _scan(data: bytes) -> None:
    """Go through a text as Go's scanner does, not deeper than that."""
    open_: list[bytes] = []
    position = 0
    while True:
        position, opened = _value(data, position)
        if opened:
            open_.append(opened)
            if len(open_) > _DEPTH_MAX:
                raise _SyntaxError(opened, "exceeded max depth")
            byte, after = _next(data, position)
            if byte == _CLOSING[opened]:
                position = after
                open_.pop()
            else:
                if opened == b"{":
                    position = _name(data, position)
                continue
        position = _end(data, position, open_)
        if not open_:
            return


def _end(data: bytes, position: int, open_: list[bytes]) -> int:
    """Take what follows a value, up to where the next one must begin; close what ends."""
    while open_:
        inner = open_[-1]
        byte, position = _next(data, position)
        if not byte:
            raise _Unfinished
        if byte == b",":
            return _name(data, position) if inner == b"{" else position
        if byte != _CLOSING[inner]:
            where = "object key:value pair" if inner == b"{" else "array element"
            raise _SyntaxError(byte, f"after {where}")
        open_.pop()
    byte, position = _next(data, position)
    if byte:
        raise _SyntaxError(byte, "after top-level value")
    return position


def _next(data: bytes, position: int) -> tuple[bytes, int]:
    """Return the next byte that is no blank (none at the end), and the position behind it."""
    blanks = _BLANK_RUN.match(data, position)
    assert blanks is not None
    position = blanks.end()
    return data[position : position + 1], position + 1


def _name(data: bytes, position: int) -> int:
    """Take the name of a field and its colon."""
    byte, position = _next(data, position)
    if byte and byte != b'"':
        raise _SyntaxError(byte, "looking for beginning of object key string")
    position = _string(data, position)
    byte, position = _next(data, position)
    if not byte:
        raise _Unfinished
    if byte != b":":
        raise _SyntaxError(byte, "after object key")
    return position


def _value(data: bytes, position: int) -> tuple[int, bytes]:
    """Take a value; of an object or array only its beginning, which is returned, too."""
    byte, position = _next(data, position)
    if not byte:
        raise _Unfinished
    if byte in _CLOSING:
        return position, byte
    if byte == b'"':
        return _string(data, position), b""
    if byte in _LITERALS:
        return _literal(data, position, _LITERALS[byte]), b""
    if byte == b"-" or byte.isdigit():
        return _number(data, position - 1), b""
    raise _SyntaxError(byte, "looking for beginning of value")


def _string(data: bytes, position: int) -> int:
    """Take a string, behind its opening quote."""
    good = _STRING.match(data, position)
    assert good is not None
    position = good.end()
    byte = data[position : position + 1]
    if byte == b'"':
        return position + 1
    if not byte:
        raise _Unfinished
    if byte != b"\\":
        raise _SyntaxError(byte, "in string literal")
    if data[position + 1 : position + 2] != b"u":
        raise _SyntaxError(data[position + 1 : position + 2], "in string escape code")
    digits = _HEX.match(data, position + 2)
    assert digits is not None
    bad = data[digits.end() : digits.end() + 1]
    raise _SyntaxError(bad, r"in \u hexadecimal character escape")


def _literal(data: bytes, position: int, literal: bytes) -> int:
    for expected in literal[1:]:
        byte = data[position : position + 1]
        if byte != bytes((expected,)):
            where = f"in literal {literal.decode()} (expecting '{chr(expected)}')"
            raise _SyntaxError(byte, where)
        position += 1
    return position


def _number(data: bytes, position: int) -> int:
    if data[position : position + 1] == b"-":
        position += 1
    position = _digits(data, position, _INTEGER, "in numeric literal")
    if data[position : position + 1] == b".":
        where = "after decimal point in numeric literal"
        position = _digits(data, position + 1, _DIGITS, where)
    if data[position : position + 1] in (b"e", b"E"):
        position += 1
        if data[position : position + 1] in (b"+", b"-"):
            position += 1
        position = _digits(data, position, _DIGITS, "in exponent of numeric literal")
    return position


def _digits(data: bytes, position: int, pattern: re.Pattern[bytes], where: str) -> int:
    found = pattern.match(data, position)
    if found is None:
        raise _SyntaxError(data[position : position + 1], where)
    return found.end()
