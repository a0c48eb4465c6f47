"""Forms and query strings: encoded pairs to parameters, and the media type that makes a form.

Names and values are byte strings after percent-decoding. Of a name given twice the first counts,
the body's before the query's. A short form takes a few calls of C code (`read_parameters`); a long
one is read by a generator that pauses between slices of a few milliseconds (`read_in_turns`), so
that other clients have their turns meanwhile. The generator finds every error.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Generator
from operator import methodcaller
from typing import TypeVar

from kvd.v2.errors import INVALID_FORM, ApiError
from kvd.v2.go_text import quote
from kvd.v2.paths import bad_escape

PARAMETERS_MAX = 1000
"""Parameters of a form, and of a query string; etcd knows thirteen."""

TOO_MANY_PARAMETERS = "too_many_parameters"
"""The limit that a request with more than `PARAMETERS_MAX` of them meets."""

# A parameter takes 2 us: a form with more of them is read in turns.
_FEW_PARAMETERS = 64
_SHORT_FORM_BYTES = 512
# Of a form with escapes as much takes half a millisecond.
_LONG_FORM_BYTES = 32 << 10

LARGE_FORM_BYTES = 256 << 10
"""A larger form with escapes is decoded in slices of about this size, see `parse_in_turns`."""

Parameters = dict[bytes, bytes]
_Result = TypeVar("_Result")

_pair = methodcaller("split", b"=", 1)
# See kvd/v2/paths.py; in a form a plus sign is a space.
_AS_QUOTED_PRINTABLE = bytes.maketrans(b"%+", b"= ")
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 -- a token of RFC 7230
_MEDIA_TYPE = re.compile(rf"({_TOKEN})?(/)?({_TOKEN})?(.*)", re.DOTALL)
_MEDIA_PARAMETER = re.compile(rf'\s*;\s*({_TOKEN})\s*=\s*(?:{_TOKEN}|"(?:[^"\\]|\\.)*")')


class TakesLong(Exception):
    """A form that takes long to decode: `read_in_turns` is to read it."""


def read_parameters(query: bytes, form: bytes) -> Parameters:
    """Return the parameters of a query string and a form, nearly always by a few calls of C code.

    Raises:
        ApiError, TakesLong: as `parse`.
    """
    size = len(form) + len(query)
    if not size:
        return {}
    if size <= _LONG_FORM_BYTES:
        said = b"%b&%b" % (form, query) if form and query else form or query
        pairs = said.split(b"&", _FEW_PARAMETERS)
        try:
            if b"%" not in said and b"+" not in said:
                params = dict(map(_pair, pairs))
            elif bad_escape(said) < 0:
                params = {_unescaped(name): _unescaped(value) for name, value in map(_pair, pairs)}
            else:
                params = {}
        except ValueError:
            params = {}  # nothing between two `&`, or a name without a value
        # Of two values for a name it would be the last.
        if len(params) == len(pairs) <= _FEW_PARAMETERS and b";" not in said:
            return params
    if size > _SHORT_FORM_BYTES and _takes_long(size, form, query):
        raise TakesLong
    return at_once(read_in_turns(query, form))


def _takes_long(size: int, form: bytes, query: bytes) -> bool:
    if form.count(b"&") + query.count(b"&") > _FEW_PARAMETERS:
        return True
    return size > _LONG_FORM_BYTES and (b"%" in form or b"+" in form)


def has_too_many_parameters(raw: bytes) -> bool:
    """Return whether a form or query string has more than `PARAMETERS_MAX` parameters."""
    return raw.count(b"&") >= PARAMETERS_MAX


def read_in_turns(query: bytes, form: bytes) -> Generator[None, None, Parameters]:
    """Return the parameters of a form and a query string, pausing between slices."""
    params: Parameters = {}
    if form:
        yield from _read_form(form, params)
    if query:
        yield from _read_form(query, params)
    return params


def _read_form(raw: bytes, params: Parameters) -> Generator[None, None, None]:
    """Add the pairs of a form or query string, unless their name is there already."""
    if has_too_many_parameters(raw):
        cause = b"more than %d parameters" % PARAMETERS_MAX
        raise ApiError(INVALID_FORM, cause, limit=TOO_MANY_PARAMETERS)
    # Before any bad escape, wherever it stands: in Go this error replaces those before it.
    if b";" in raw:
        raise ApiError(INVALID_FORM, b"invalid semicolon separator in query")
    decoded = 0
    end = -1
    while end < len(raw):
        # Pieces are not cut out: a value may be 10 MiB of them, once more for each copy.
        start, end = end + 1, _found(raw, b"&", end + 1, len(raw))
        if start == end:
            continue
        name_end = _found(raw, b"=", start, end)
        if _found(raw, b"%", start, end) == _found(raw, b"+", start, end) == end:
            params.setdefault(raw[start:name_end], raw[name_end + 1 : end])
            continue
        decoded += end - start
        if decoded > LARGE_FORM_BYTES:
            decoded = end - start
            yield
        name = yield from _unescape(raw, start, name_end)
        value = yield from _unescape(raw, name_end + 1, end)
        params.setdefault(name, value)


def _found(raw: bytes, byte: bytes, start: int, end: int) -> int:
    """Return where a byte is within a part of a text, or the end of that."""
    place = raw.find(byte, start, end)
    return end if place < 0 else place


def _unescape(raw: bytes, start: int, end: int) -> Generator[None, None, bytes]:
    """Return a part of a text without its escapes, pausing between slices."""
    if end - start <= LARGE_FORM_BYTES:
        return _unescape_slice(raw[start:end])
    slices = []
    while start < end:
        stop = min(start + LARGE_FORM_BYTES, end)
        # Not inside an escape.
        mark = raw.rfind(b"%", stop - 2, stop)
        stop = mark if mark >= 0 and stop < end else stop
        slices.append(_unescape_slice(raw[start:stop]))
        start = stop
        yield
    return b"".join(slices)


def _unescape_slice(raw: bytes) -> bytes:
    if (bad := bad_escape(raw)) >= 0:
        raise ApiError(INVALID_FORM, b"invalid URL escape " + quote(raw[bad : bad + 3]))
    return _unescaped(raw)


def _unescaped(raw: bytes) -> bytes:
    """Return text without its escapes, all of them good."""
    return a2b_qp(raw.replace(b"=", b"%3D").translate(_AS_QUOTED_PRINTABLE))


def at_once(turns: Generator[None, None, _Result]) -> _Result:
    """Return what is made in turns."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            result: _Result = end.value
            return result


def is_form(content_type: str | None) -> bool:
    """Return whether a body of this type is read for parameters.

    Raises:
        ApiError: 210, it is no media type, or its parameters are malformed, whatever the type.
    """
    if not content_type:
        return False
    media_type, separator, rest = content_type.partition(";")
    media_type = media_type.strip().lower()
    _check_media_type(media_type)
    rest = separator + rest
    seen = set()
    while match := _MEDIA_PARAMETER.match(rest):
        name = match[1].lower()
        if name in seen:
            raise ApiError(INVALID_FORM, b"mime: duplicate parameter name")
        seen.add(name)
        rest = rest[match.end() :]
    if rest.strip() not in ("", ";"):
        raise ApiError(INVALID_FORM, b"mime: invalid media parameter")
    return media_type == "application/x-www-form-urlencoded"


def _check_media_type(media_type: str) -> None:
    """Refuse what is neither `type` nor `type/subtype`, in the words of Go's mime package."""
    match = _MEDIA_TYPE.fullmatch(media_type)
    assert match is not None
    main, slash, subtype, rest = match.groups()
    if not main:
        raise ApiError(INVALID_FORM, b"mime: no media type")
    if not slash and rest:
        raise ApiError(INVALID_FORM, b"mime: expected slash after first token")
    if slash and not subtype:
        raise ApiError(INVALID_FORM, b"mime: expected token after slash")
    if rest:
        raise ApiError(INVALID_FORM, b"mime: unexpected content after media subtype")
