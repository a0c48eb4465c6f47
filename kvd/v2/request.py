"""Parameters of a request to the key space to a command, a read or a watch, or to an error.

This is the only place that knows the parameters. All known names are checked on every method, even
where they have no effect, in the order of `_check`; the first thing wrong is answered, with index
0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import lru_cache
from itertools import product
from typing import NamedTuple

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
    PREV_VALUE_REQUIRED,
    REFRESH_TTL_REQUIRED,
    REFRESH_VALUE,
    TTL_NOT_A_NUMBER,
    ApiError,
)
from kvd.v2.form import Parameters, at_once, read_in_turns, read_parameters

DIGITS_MAX = 1000
"""Digits of a number, leading zeros included."""

EXTRAS = frozenset(
    (
        *(b"after", b"base64", b"count", b"depth", b"find", b"hidden", b"in", b"keysOnly"),
        *(b"limit", b"marks", b"maxValue", b"prefix", b"raw"),
        *(b"at", b"before", b"history"),
        *(b"actions", b"level", b"progress", b"refreshes", b"waitTimeout"),
    )
)
"""Names of what etcd does not know of a read (parameters.py); other methods ignore them, too."""

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
_UINT_MAX = (1 << 64) - 1

# Commands of short requests without a value or an index are cached: clients repeat these in the
# same bytes, as the holder of a lease does.
_SHORT_BYTES_MAX = 128
_varying = re.compile(rb"(?:alue|Index)=").search


class _Check(NamedTuple):
    """Constraint on the value of a parameter, and the error of any other value."""

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


def parse(method: str, key: bytes, query: bytes, form: bytes) -> Parsed:
    """Return the command, read or watch of a request to the key space.

    Args:
        method: one of GET, HEAD, PUT, POST and DELETE.
        key: the cleaned path of the key.
        query: the raw query string, without its `?`.
        form: the raw body where it is a form, else empty.

    Raises:
        ApiError: 2xx, the first thing wrong in the order that etcd checks.
        TakesLong: the form is large, or has many parameters: `parse_in_turns` is to parse it.
    """
    return _request(method, key, read_parameters(query, form))


def parse_write(method: str, key: bytes, query: bytes, form: bytes) -> ParsedWrite:
    """Do what `parse` does, for PUT, POST and DELETE."""
    if len(form) + len(query) > _SHORT_BYTES_MAX or _varying(form) or _varying(query):
        return _command(method, key, read_parameters(query, form))
    command, no_value, recursive = _kept_command(method, query, form)
    # The command of another key with the same parameters, copied by `tuple.__new__` with this key:
    # that spares a sixth of the cost of a refresh (counted).
    return _new(type(command), (key, *command[1:])), no_value, recursive


@lru_cache(maxsize=1024)
def _kept_command(method: str, query: bytes, form: bytes) -> ParsedWrite:
    return _command(method, b"", read_parameters(query, form))


def varies(said: bytes) -> bool:
    """Return whether a form or query string has a value or an index: it seldom comes again."""
    return _varying(said) is not None


def parse_in_turns(
    method: str, key: bytes, query: bytes, form: bytes
) -> Generator[None, None, Parsed]:
    """Do what `parse` does, pausing between slices of a few milliseconds.

    Raises:
        ApiError: as `parse`.
    """
    params = yield from read_in_turns(query, form)
    return _request(method, key, params)


def parse_whole(method: str, key: bytes, query: bytes) -> Parsed:
    """Do what `parse` does without a form, at once: a query is as short as a head.

    Raises:
        ApiError: as `parse`.
    """
    return at_once(parse_in_turns(method, key, query, b""))


def _request(method: str, key: bytes, params: Parameters) -> Parsed:
    """Return the command, read or watch of a request's parameters."""
    if method not in ("GET", "HEAD"):
        return _command(method, key, params)
    is_usual = _check(method, params)
    asked = _get(key, params, is_usual=is_usual, is_head=method == "HEAD")
    return asked, False, params.get(b"recursive") in _TRUE


def _command(method: str, key: bytes, params: Parameters) -> ParsedWrite:
    """Return the command of a PUT's, POST's or DELETE's parameters."""
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
        # Nearly always a parameter is invalid: find the first one, in etcd's order.
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


def _check(method: str, params: Parameters) -> bool:
    """Refuse the first thing wrong; the order is etcd's and is what clients see.

    Returns:
        Whether there are no extras.
    """
    # One pass in the order of the parameters finds out whether all are good, as they nearly always
    # are: there are fewer parameters than checks. Otherwise the checks run, in the order of etcd.
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


def _get(key: bytes, params: Parameters, *, is_usual: bool, is_head: bool) -> Get | Watch:
    get = params.get
    recursive = get(b"recursive") in _TRUE
    extras: Extras = ()
    if not is_usual:
        extras = tuple(pair for pair in params.items() if pair[0] in EXTRAS)
    quorum = get(b"quorum") in _TRUE
    if get(b"wait") in _TRUE and not quorum:
        wait_index = int(get(b"waitIndex", 0))
        return Watch(key, recursive, get(b"stream") in _TRUE, wait_index, extras)
    is_sorted = get(b"sorted") in _TRUE
    return Get(key, recursive, is_sorted, extras=extras, quorum=quorum and not is_head)


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
