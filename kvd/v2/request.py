"""HTTP words to requests: paths, forms, parameters, and every error that they can hold.

This is the only place that knows the parameters. All known names are checked on every method, even
where they have no effect, in the order of `_check`; the first thing wrong is answered, with index
0. Names and values are byte strings after percent-decoding. Of a name given twice the first counts,
the body's before the query's.
"""

from __future__ import annotations

import re
from binascii import a2b_qp
from collections.abc import Callable, Generator
from functools import lru_cache
from itertools import product
from operator import methodcaller
from typing import NamedTuple, TypeVar
from urllib.parse import quote_from_bytes

from kvd.v2.commands import (
    Command,
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Extras,
    Get,
    Request,
    Set,
    Update,
    Watch,
)
from kvd.v2.errors import (
    INDEX_NOT_A_NUMBER,
    INVALID_FIELD,
    INVALID_FORM,
    PREV_VALUE_REQUIRED,
    REFRESH_TTL_REQUIRED,
    REFRESH_VALUE,
    TTL_NOT_A_NUMBER,
    ApiError,
)

PARAMETERS_MAX = 1000
"""Parameters of a form, and of a query string; etcd knows thirteen."""

DIGITS_MAX = 1000
"""Digits of a number, leading zeros included."""

# A parameter takes 2 us: with more of them others should have their turns meanwhile.
_FEW_PARAMETERS = 64
_SHORT_FORM_BYTES = 512
# Of a form with escapes as much takes half a millisecond.
_LONG_FORM_BYTES = 32 << 10

LARGE_FORM_BYTES = 256 << 10
"""A larger form with escapes is decoded in slices of about this size, see `parse_in_turns`."""

KEYS = b"/v2/keys"

EXTRAS = frozenset(
    (
        *(b"after", b"base64", b"count", b"depth", b"find", b"hidden", b"in", b"keysOnly"),
        *(b"limit", b"marks", b"maxValue", b"prefix", b"raw"),
        *(b"at", b"before", b"history"),
        *(b"actions", b"level", b"progress", b"refreshes", b"waitTimeout"),
    )
)
"""Names of what etcd does not know of a read (parameters.py); other methods ignore them, too."""

Parameters = dict[bytes, bytes]
_Result = TypeVar("_Result")
ParsedWrite = tuple[Command, bool, bool]
"""A command, whether its success omits the values, and whether it says `recursive`."""
Parsed = tuple[Request, bool, bool]
"""The same of any request."""
_Flags = tuple[bool, bool | None, bool, bool, bool]
"""Of a write: dir, prevExist, refresh, noValueOnSuccess and recursive."""
_NO_FLAGS: _Flags = (False, None, False, False, False)

BOOLS = dict.fromkeys((b"1", b"t", b"T", b"TRUE", b"true", b"True"), True) | dict.fromkeys(
    (b"0", b"f", b"F", b"FALSE", b"false", b"False"), False
)
_TRUE = frozenset(text for text, is_true in BOOLS.items() if is_true)
_NAMES = (b"dir", b"prevExist", b"refresh", b"noValueOnSuccess", b"recursive")
_GOOD_FLAGS = frozenset(product(_NAMES, BOOLS))
_is_number = re.compile(rb"[0-9]{1,19}").fullmatch
"""Whether a number is good, and short: one that is longer may be."""
_new = tuple.__new__
_pair = methodcaller("split", b"=", 1)
_UINT_MAX = (1 << 64) - 1

# What clients say over and over again in the same bytes, as a lease's holder does: neither a value
# nor an index is in it.
_SHORT_BYTES_MAX = 128
_varying = re.compile(rb"(?:alue|Index)=").search
# Escapes are decoded by the C code for quoted-printable text, whose `=41` is the `%41` of URLs: a
# hundred times as fast as `urllib.parse` (10 MiB of escapes take 30 ms, not 2.3 s; measured).
_AS_QUOTED_PRINTABLE = bytes.maketrans(b"%+", b"= ")
_PATH_AS_QUOTED_PRINTABLE = bytes.maketrans(b"%", b"=")
# Tells where an escape is good, without looking at each by itself: as `%hh`.
_KINDS = bytes(
    ord("h") if c in b"0123456789ABCDEFabcdef" else c if c == ord("%") else ord(".")
    for c in range(256)
)
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105 -- a token of RFC 7230
_MEDIA_TYPE = re.compile(rf"({_TOKEN})?(/)?({_TOKEN})?(.*)", re.DOTALL)
_MEDIA_PARAMETER = re.compile(rf'\s*;\s*({_TOKEN})\s*=\s*(?:{_TOKEN}|"(?:[^"\\]|\\.)*")')
# What Go's URL.EscapedPath leaves as it is in a path that was not sent so.
_PATH_SAFE = "/$&+,:;=@-._~"
# What Go's %q has names for.
_NAMED = {ord(c): rf"\{name}" for c, name in zip('\a\b\f\n\r\t\v\\"', 'abfnrtv\\"', strict=True)}


TOO_MANY_PARAMETERS = "too_many_parameters"
"""The limit that a request with more than `PARAMETERS_MAX` of them meets."""


class _Check(NamedTuple):
    """What the value of a parameter must be, and the error of any other."""

    name: bytes
    is_good: Callable[[bytes], bool]
    code: int
    cause: bytes


def _is_uint(raw: bytes) -> bool:
    return uint(raw) is not None


_IS_BOOL = BOOLS.__contains__
_CHECKED_FIRST = (
    *(
        _Check(name, _is_uint, INDEX_NOT_A_NUMBER, b'invalid value for "%b"' % name)
        for name in (b"prevIndex", b"waitIndex")
    ),
    *(
        _Check(name, _IS_BOOL, INVALID_FIELD, b'invalid value for "%b"' % name)
        for name in (b"recursive", b"sorted", b"wait", b"dir", b"quorum", b"stream")
    ),
)
_CHECKED_THEN = (
    _Check(b"prevValue", bool, PREV_VALUE_REQUIRED, b'"prevValue" cannot be empty'),
    _Check(b"noValueOnSuccess", _IS_BOOL, INVALID_FIELD, b'invalid value for "noValueOnSuccess"'),
    # An empty TTL is none.
    _Check(
        b"ttl",
        lambda raw: not raw or _is_uint(raw),
        TTL_NOT_A_NUMBER,
        b'invalid value for "ttl"',
    ),
    _Check(b"prevExist", _IS_BOOL, INVALID_FIELD, b"invalid value for prevExist"),
    _Check(b"refresh", _IS_BOOL, INVALID_FIELD, b"invalid value for refresh"),
)
_IS_GOOD = {check.name: check.is_good for check in (*_CHECKED_FIRST, *_CHECKED_THEN)}
# So that a request without them does nothing for them, not even one look-up.
_IS_GOOD |= dict.fromkeys(EXTRAS, lambda _: False)


class BadEscape(ValueError):
    """The target of a request is none, or holds a `%` that two hexadecimal digits do not follow."""


class TakesLong(Exception):
    """A form takes so long to be decoded that others should have their turns meanwhile."""


def decode_path(raw: bytes) -> bytes:
    """Return a percent-decoded path.

    Raises:
        BadEscape: it cannot be decoded.
    """
    if b"%" not in raw:
        return raw
    if _bad_escape(raw) >= 0:
        raise BadEscape
    return a2b_qp(raw.replace(b"=", b"%3D").translate(_PATH_AS_QUOTED_PRINTABLE))


def clean_path(path: bytes) -> bytes:
    """Return a decoded path as net/http's ServeMux cleans it.

    Slashes in a row become one, `.` and `..` are resolved, one slash at the end stays.
    """
    if path.startswith(b"/") and b"//" not in path and b"/." not in path:
        return path
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            del names[-1:]
        elif name not in (b"", b"."):
            names.append(name)
    cleaned = b"/" + b"/".join(names)
    return cleaned + b"/" if path.endswith(b"/") and cleaned != b"/" else cleaned


def encode_path(path: bytes) -> str:
    """Return a decoded path as it stands in a Location header."""
    return quote_from_bytes(path, safe=_PATH_SAFE)


def is_below(path: bytes, ancestor: bytes) -> bool:
    """Return whether a path lies below another, component by component."""
    return path != ancestor and path.startswith(ancestor.rstrip(b"/") + b"/")


def key_of(path: bytes, base: bytes = KEYS) -> bytes | None:
    """Return the key that a cleaned path addresses, or None where it is no path of the key space.

    One slash at the end is ignored; the key space itself is the root. `base` is where that begins.
    """
    if not path.startswith(base):
        return None
    key = path[len(base) :]
    if not key or key == b"/":
        return b"/"
    if not key.startswith(b"/"):
        return None
    return key[:-1] if key.endswith(b"/") else key


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


def parse(method: str, key: bytes, query: bytes, form: bytes) -> Parsed:
    """Return what a request to the key space asks for.

    Args:
        method: one of GET, HEAD, PUT, POST and DELETE.
        key: the cleaned path of the key.
        query: the raw query string, without its `?`.
        form: the raw body where it is a form, else empty.

    Raises:
        ApiError: 2xx, the first thing wrong in the order that etcd checks.
        TakesLong: the form is large, or has many parameters: `parse_in_turns` is to parse it.
    """
    return _request(method, key, _parameters(query, form))


def parse_write(method: str, key: bytes, query: bytes, form: bytes) -> ParsedWrite:
    """Do what `parse` does, for PUT, POST and DELETE."""
    if len(form) + len(query) > _SHORT_BYTES_MAX or _varying(form) or _varying(query):
        return _command(method, key, _parameters(query, form))
    command, no_value, recursive = _kept_command(method, query, form)
    # A sixth of what a refresh costs is spared (counted): only the key is another one.
    return _new(type(command), (key, *command[1:])), no_value, recursive


@lru_cache(maxsize=1024)
def _kept_command(method: str, query: bytes, form: bytes) -> ParsedWrite:
    return _command(method, b"", _parameters(query, form))


def _parameters(query: bytes, form: bytes) -> Parameters:
    """Return what a query string and a form say, which nearly always takes a few calls of C code.

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
            elif _bad_escape(said) < 0:
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
    return _at_once(_read_all(query, form))


def varies(said: bytes) -> bool:
    """Return whether a form or query string has a value or an index: it seldom comes again."""
    return _varying(said) is not None


def _takes_long(size: int, form: bytes, query: bytes) -> bool:
    if form.count(b"&") + query.count(b"&") > _FEW_PARAMETERS:
        return True
    return size > _LONG_FORM_BYTES and (b"%" in form or b"+" in form)


def parse_in_turns(
    method: str, key: bytes, query: bytes, form: bytes
) -> Generator[None, None, Parsed]:
    """Do what `parse` does, pausing between slices of a few milliseconds.

    Raises:
        ApiError: as `parse`.
    """
    params = yield from _read_all(query, form)
    return _request(method, key, params)


def parse_whole(method: str, key: bytes, query: bytes) -> Parsed:
    """Do what `parse` does without a form, at once: a query is as short as a head.

    Raises:
        ApiError: as `parse`.
    """
    return _at_once(parse_in_turns(method, key, query, b""))


def _at_once(turns: Generator[None, None, _Result]) -> _Result:
    """Return what is made in turns."""
    while True:
        try:
            next(turns)
        except StopIteration as end:
            result: _Result = end.value
            return result


def _request(method: str, key: bytes, params: Parameters) -> Parsed:
    """Return what the parameters of a request ask for."""
    if method not in ("GET", "HEAD"):
        return _command(method, key, params)
    is_usual = _check(method, params)
    return _get(key, params, is_usual=is_usual), False, params.get(b"recursive") in _TRUE


def _command(method: str, key: bytes, params: Parameters) -> ParsedWrite:
    """Return what the parameters of a PUT, POST or DELETE ask for."""
    rest = params.copy()
    value, prev_value = rest.pop(b"value", b""), rest.pop(b"prevValue", None)
    ttl, prev_index = rest.pop(b"ttl", None), rest.pop(b"prevIndex", None)
    flags = _flags(rest) if rest else _NO_FLAGS
    if (
        not rest.items() <= _GOOD_FLAGS
        or prev_value == b""
        or (prev_index is not None and not _is_number(prev_index))
        or (ttl and not _is_number(ttl))
        or (flags[2] and (value or not ttl))
    ):
        # Nearly always something is wrong.
        _check(method, params)
    is_dir, exist, refresh, no_value, recursive = flags
    ttl_s = int(ttl) if ttl else None
    # Not by the named tuples' own constructors, each of which is a call more.
    if method == "POST":
        return _new(CreateInOrder, (key, value, is_dir, ttl_s)), no_value, recursive
    index = int(prev_index) if prev_index else 0
    compares = prev_value is not None or index > 0
    if method == "DELETE":
        if compares:
            return _new(CompareAndDelete, (key, prev_value, index)), False, recursive
        return _new(Delete, (key, recursive or is_dir, recursive)), False, recursive
    command: Command
    if exist is False:
        command = _new(Create, (key, value, is_dir, ttl_s))
    elif compares:
        command = _new(CompareAndSwap, (key, value, prev_value, index, ttl_s, refresh))
    elif exist:
        command = _new(Update, (key, value, ttl_s, refresh))
    else:
        command = _new(Set, (key, value, is_dir, ttl_s, refresh))
    return command, no_value, recursive


def _flags(params: Parameters) -> _Flags:
    get = params.get
    exist = get(b"prevExist")
    return (
        get(b"dir") in _TRUE,
        None if exist is None else exist in _TRUE,
        get(b"refresh") in _TRUE,
        get(b"noValueOnSuccess") in _TRUE,
        get(b"recursive") in _TRUE,
    )


def has_too_many_parameters(raw: bytes) -> bool:
    """Return whether a form or query string has more than `PARAMETERS_MAX` parameters."""
    return raw.count(b"&") >= PARAMETERS_MAX


def _read_all(query: bytes, form: bytes) -> Generator[None, None, Parameters]:
    """Return what a form and a query string say, pausing between slices."""
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
    if (bad := _bad_escape(raw)) >= 0:
        raise ApiError(INVALID_FORM, b"invalid URL escape " + quote(raw[bad : bad + 3]))
    return _unescaped(raw)


def _unescaped(raw: bytes) -> bytes:
    """Return text without its escapes, all of them good."""
    return a2b_qp(raw.replace(b"=", b"%3D").translate(_AS_QUOTED_PRINTABLE))


def _bad_escape(raw: bytes) -> int:
    """Return where a `%` is that two hexadecimal digits do not follow; -1 if nowhere."""
    kinds = raw.translate(_KINDS)
    if kinds.count(b"%hh") == kinds.count(b"%"):
        return -1
    return kinds.replace(b"%hh", b"...").find(b"%")


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


def _check(method: str, params: Parameters) -> bool:
    """Refuse the first thing wrong; the order is etcd's and is what clients see.

    Returns:
        Whether there are no extras.
    """
    # There are fewer parameters than checks, and nearly always nothing is wrong.
    is_usual = True
    for name, value in params.items():
        is_good = _IS_GOOD.get(name)
        if is_good is not None and not is_good(value):
            is_usual = False
    if not is_usual:
        _check_values(_CHECKED_FIRST, params)
    get = params.get
    if method != "GET" and get(b"wait") in _TRUE:
        raise ApiError(INVALID_FIELD, b'"wait" can only be used with GET requests')
    if not is_usual:
        _check_values(_CHECKED_THEN, params)
    if get(b"refresh") in _TRUE:
        if get(b"value"):
            raise ApiError(REFRESH_VALUE, b"A value was provided on a refresh")
        if not get(b"ttl"):
            raise ApiError(REFRESH_TTL_REQUIRED, b"No TTL value set")
    return is_usual


def _check_values(checks: tuple[_Check, ...], params: Parameters) -> None:
    for name, is_good, code, cause in checks:
        if name in params and not is_good(params[name]):
            raise ApiError(code, cause)


def _get(key: bytes, params: Parameters, *, is_usual: bool) -> Get | Watch:
    get = params.get
    recursive = get(b"recursive") in _TRUE
    extras: Extras = ()
    if not is_usual:
        extras = tuple(pair for pair in params.items() if pair[0] in EXTRAS)
    if get(b"wait") in _TRUE and get(b"quorum") not in _TRUE:
        wait_index = int(get(b"waitIndex", 0))
        return Watch(key, recursive, get(b"stream") in _TRUE, wait_index, extras)
    return Get(key, recursive, get(b"sorted") in _TRUE, extras=extras)


def uint(raw: bytes) -> int | None:
    """Return a decimal number of 64 bits, or None where it is none; leading zeros are fine."""
    if len(raw) > DIGITS_MAX or not raw.isdigit():
        return None
    if len(raw) > 20:
        raw = raw.lstrip(b"0") or b"0"
        if len(raw) > 20:
            return None
    number = int(raw)
    return number if number <= _UINT_MAX else None
