"""Extras of reads: parameters of `GET /v2/keys` that etcd does not know.

etcd ignores these names on every method, so a client that does not use them sees no difference.
They are checked after all of etcd's own parameters. A bad value, or a parameter that has no meaning
together with another one, is 209 with its name in the cause, at index 0.

    limit after prefix            a page of the children of a directory
    marks                         the names at which its pages begin
    count, find, in               what is below it, counted or searched
    depth hidden                  which nodes a listing shows
    keysOnly maxValue base64      how it shows their values, and that of a file
    raw                           the value of a file as it is
    history before refreshes      the events of a key
    at                            a file as it was

Those of a watch are in kvd/v2/extras/watch.py.

On a file the parameters that are about directories have no effect: a client that follows a link
need not know which of the two it leads to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, NoReturn

from kvd.v2.commands import Extras, Get
from kvd.v2.errors import INVALID_FIELD, ApiError
from kvd.v2.request import BOOLS, EXTRAS, uint
from kvd.v2.response import ACTIONS

LIMIT_MAX = 10_000
"""Children of a page, children between two marks, nodes that are found."""
DEPTH_MAX = 1000
FIND_BYTES_MAX = 1024
"""Bytes of a text that is looked for."""
MGET_KEYS_MAX = 1000
WAIT_S_MAX = 3600
"""Seconds of a `waitTimeout`, and between two lines of `progress`."""
TXN_OPS_MAX = 128
"""Operations of a transaction, and as many conditions."""
TXN_KEY_BYTES_MAX = 64 << 10
"""Bytes of all their keys: one of thousands of components takes milliseconds to be changed."""
TXN_COMPONENTS_MAX = 8192
"""Components of the keys of a transaction, which take 4 us each: one of the deepest fits."""

TOO_MANY_KEYS, TOO_MANY_TOKENS = "too_many_keys", "too_many_tokens"
TOO_MANY_OPERATIONS = "too_many_operations"
"""The limits that a request for more of them meets, or for a new token of discovery."""

ACCEPT, IF_NONE_MATCH = b"Accept", b"If-None-Match"
"""Headers that count as extras of a read; no parameter has these names."""
EVENT_STREAM = b"text/event-stream"
"""What counts as an extra of a watch: its Accept header names that; and where it goes on."""
LAST_EVENT_ID = b"Last-Event-ID"

# In addition to `raw`, which is a parameter, too.
_PATHS = ("mget", "txn")
_OF_VALUES = (b"keysOnly", b"maxValue", b"base64")
_NEED_WAIT = (b"waitTimeout", b"progress", b"actions", b"level")
# Modes of a read, by the first parameter that is present, and the parameters allowed with it;
# without any of them a read is a listing.
_MODES: dict[bytes, tuple[bytes, ...]] = {
    b"find": (b"in", b"limit", b"after", b"hidden"),
    b"count": (b"prefix", b"hidden"),
    b"history": (b"limit", b"before", b"refreshes", *_OF_VALUES),
    b"at": _OF_VALUES,
    b"marks": (b"prefix", b"hidden"),
    b"raw": (b"limit", b"after", b"prefix", b"depth", b"hidden"),
}
_NUMBERS: dict[bytes, tuple[float, float]] = {
    b"limit": (1, LIMIT_MAX),
    b"marks": (1, LIMIT_MAX),
    b"depth": (1, DEPTH_MAX),
    b"before": (1, (1 << 64) - 1),
    b"at": (1, (1 << 64) - 1),
    # Its limit is that of a value, which is a setting.
    b"maxValue": (0, 1 << 62),
    b"level": (1, DEPTH_MAX),
    b"waitTimeout": (0.1, WAIT_S_MAX),
    b"progress": (0.1, WAIT_S_MAX),
}
_SECONDS = (b"waitTimeout", b"progress")
_DECIMAL = re.compile(rb"\d{1,9}(?:\.\d{1,9})?")
_ACTIONS = set(ACTIONS.values())
_TEXTS: dict[bytes, Callable[[bytes], bool]] = {
    b"after": lambda _: True,
    b"prefix": lambda _: True,
    b"find": lambda raw: 0 < len(raw) <= FIND_BYTES_MAX,
    b"in": lambda raw: set(raw.split(b",")) <= {b"keys", b"values"},
    b"actions": lambda raw: set(raw.split(b",")) <= _ACTIONS,
    ACCEPT: lambda _: True,
    IF_NONE_MATCH: lambda _: True,
    EVENT_STREAM: lambda _: True,
}


Values = tuple[set[bytes], dict[bytes, float], dict[bytes, bytes]]


class Shape(NamedTuple):
    """Shape of values: left out; cut to so many bytes, with their size; as base64."""

    keys_only: bool = False
    max_value: int | None = None
    base64: bool = False


AS_EVER = Shape()


class ReadExtras(NamedTuple):
    """The extras of one read."""

    limit: int | None = None
    after: bytes | None = None
    prefix: bytes = b""
    marks: int | None = None
    counts: bool = False
    find: bytes = b""
    in_keys: bool = True
    in_values: bool = True
    depth: int | None = None
    hidden: bool = False
    raw: bool = False
    history: bool = False
    before: int | None = None
    refreshes: bool = False
    at: int | None = None
    shape: Shape = AS_EVER
    etags: bytes = b""
    """What an If-None-Match header says."""

    def levels(self, *, recursive: bool) -> int | None:
        """Return how many levels of nodes a listing shows, None for all."""
        return self.depth or (None if recursive else 1)

    def is_recursive(self, get: Get) -> bool:
        """Return whether such a read takes the right to all that is below the key."""
        deep = get.recursive or self.levels(recursive=False) != 1
        return deep or self.hidden or self.counts or bool(self.find)


def read_extras(get: Get, value_bytes_max: int) -> ReadExtras:
    """Return what the extras of a read ask for.

    Raises:
        ApiError: 209, the first thing wrong with them.
    """
    flags, numbers, texts = values_of(get.extras)
    check_max_value(numbers, value_bytes_max)
    for name in (*flags, *numbers, *texts):
        if name in _NEED_WAIT:
            raise ApiError(INVALID_FIELD, b'"%b" needs wait=true' % name)
    asked = {*flags, *numbers, *texts}
    mode = _mode([name for name, _ in get.extras if name in asked], recursive=get.recursive)
    places = texts.get(b"in", b"keys,values").split(b",")
    # A header is a wish: what a parameter says comes before it.
    is_negotiated = ACCEPT in texts and mode is None and asked.isdisjoint(_OF_VALUES)
    extras = ReadExtras(
        limit=_whole(numbers.get(b"limit")),
        after=texts.get(b"after"),
        prefix=texts.get(b"prefix", b""),
        marks=_whole(numbers.get(b"marks")),
        counts=b"count" in flags,
        find=texts.get(b"find", b""),
        in_keys=b"keys" in places,
        in_values=b"values" in places,
        depth=_whole(numbers.get(b"depth")),
        hidden=b"hidden" in flags,
        raw=b"raw" in flags or is_negotiated,
        history=b"history" in flags,
        before=_whole(numbers.get(b"before")),
        refreshes=b"refreshes" in flags,
        at=_whole(numbers.get(b"at")),
        shape=Shape(b"keysOnly" in flags, _whole(numbers.get(b"maxValue")), b"base64" in flags),
        etags=texts.get(IF_NONE_MATCH, b""),
    )
    if mode is None and extras.levels(recursive=get.recursive) != 1:
        _refuse_page(extras)
    return extras


def capability() -> dict[str, object]:
    """Return the document of `/v2/extras`: the supported extras and their limits."""
    names = sorted([name.decode() for name in EXTRAS] + [*_PATHS])
    limits = {"limit": LIMIT_MAX, "depth": DEPTH_MAX, "find": FIND_BYTES_MAX}
    limits |= {
        "waitTimeout": WAIT_S_MAX,
        "mgetKeys": MGET_KEYS_MAX,
        "txnOps": TXN_OPS_MAX,
        "txnKeyBytes": TXN_KEY_BYTES_MAX,
        "txnComponents": TXN_COMPONENTS_MAX,
    }
    return {"server": "kvd", "extras": names, "limits": limits}


def values_of(extras: Extras) -> Values:
    """Return the values by name: the flags that are set, the numbers, the texts.

    Raises:
        ApiError: 209, one of them is bad.
    """
    flags: set[bytes] = set()
    numbers: dict[bytes, float] = {}
    texts: dict[bytes, bytes] = {}
    for name, raw in extras:
        if name in _NUMBERS:
            number = _seconds(raw) if name in _SECONDS else uint(raw)
            lowest, highest = _NUMBERS[name]
            if number is None or not lowest <= number <= highest:
                _refuse_value(name)
            numbers[name] = number
        elif name in _TEXTS:
            if not _TEXTS[name](raw):
                _refuse_value(name)
            texts[name] = raw
        elif raw not in BOOLS:
            _refuse_value(name)
        elif BOOLS[raw]:
            flags.add(name)
    return flags, numbers, texts


def check_max_value(numbers: Mapping[bytes, float], value_bytes_max: int) -> None:
    """Refuse a `maxValue` that is larger than a value can be."""
    if numbers.get(b"maxValue", 0) > value_bytes_max:
        _refuse_value(b"maxValue")


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _seconds(raw: bytes) -> float | None:
    return float(raw) if _DECIMAL.fullmatch(raw) else None


def _mode(asked: Sequence[bytes], *, recursive: bool) -> bytes | None:
    """Return the mode of a read, None for a listing; refuse what means nothing in it."""
    mode = next((mode for mode in _MODES if mode in asked), None)
    if mode is not None:
        for name in asked:
            if name not in (mode, ACCEPT, IF_NONE_MATCH, *_MODES[mode]):
                refuse_pair(name, mode)
        if mode in (b"marks", b"at") and recursive:
            refuse_pair(mode, b"recursive")
    for name, other in ((b"in", b"find"), (b"before", b"history"), (b"refreshes", b"history")):
        if name in asked and mode != other:
            raise ApiError(INVALID_FIELD, b'"%b" needs "%b"' % (name, other))
    if b"keysOnly" in asked:
        for name in (b"maxValue", b"base64"):
            if name in asked:
                refuse_pair(name, b"keysOnly")
    return mode


def _refuse_page(extras: ReadExtras) -> None:
    """Refuse a page of more than one level: it would have to remember its place on each."""
    other = b"recursive" if extras.depth is None else b"depth"
    if extras.limit is not None:
        refuse_pair(b"limit", other)
    if extras.after is not None:
        refuse_pair(b"after", other)


def refuse_pair(name: bytes, other: bytes) -> NoReturn:
    """Refuse a pair of parameters.

    Raises:
        ApiError: 209.
    """
    raise ApiError(INVALID_FIELD, b'"%b" cannot be used with "%b"' % (name, other))


def _refuse_value(name: bytes) -> NoReturn:
    raise ApiError(INVALID_FIELD, b'invalid value for "%b"' % name)
