r"""`POST /v2/txn`: several keys changed at once, if all conditions hold, or none of them.

    {"when":[{"key":"/lock","createdIndex":42},{"key":"/new","exists":false}],
     "ops":[{"action":"set","key":"/a","value":"2","ttl":60},
            {"action":"delete","key":"/old","recursive":true}]}
    {"action":"txn","index":1304,"events":[{"action":"set","node":{...},"prevNode":{...}},...]}

A body is read field by field, and no further than the first thing that is wrong: so its cost is
bounded by its length, whatever it consists of. In JSON's grammar (RFC 8259) it is

    body    { "when": [ object, ... ], "ops": [ object, ... ] }        each at most once
    object  { name: string | number | true | false, ... }

Values that are no text are given as `valueBase64`, in the alphabet of RFC 4648, section 4.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from kvd.v2.commands import (
    Command,
    CompareAndDelete,
    CompareAndSwap,
    Condition,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Transaction,
    Update,
)
from kvd.v2.errors import (
    INVALID_FIELD,
    INVALID_FORM,
    REFRESH_TTL_REQUIRED,
    REFRESH_VALUE,
    ApiError,
)
from kvd.v2.extras.parameters import (
    TOO_MANY_OPERATIONS,
    TXN_COMPONENTS_MAX,
    TXN_KEY_BYTES_MAX,
    TXN_OPS_MAX,
)
from kvd.v2.paths import clean_path

TXN = b"/v2/txn"
BODY_BYTES_MAX = 6 << 20
"""4 MiB of values as base64, and all that is around them."""

_UINT_MAX = (1 << 64) - 1
_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_PRIMITIVE = frozenset('"-0123456789tfn')
_MEANING = {str: "a string", bool: "true or false", int: "a whole number"}

Fields = dict[str, Any]


class _Field(NamedTuple):
    """Constraint on a field of an object."""

    type: type
    lowest: int = 0


_STRING, _BOOL, _UINT, _INDEX = _Field(str), _Field(bool), _Field(int), _Field(int, 1)
_VALUE = {"value": _STRING, "valueBase64": _STRING}
_CONDITION = {**_VALUE, "key": _STRING, "exists": _BOOL, "dir": _BOOL}
_CONDITION |= {"modifiedIndex": _INDEX, "createdIndex": _INDEX}
_PREVIOUS = {"prevValue": _STRING, "prevIndex": _INDEX}
_TTL, _DIR, _REFRESH = {"ttl": _UINT}, {"dir": _BOOL}, {"refresh": _BOOL}
# What may stand beside `action` and `key`.
_ACTIONS: dict[str, Mapping[str, _Field]] = {
    "set": {**_VALUE, **_DIR, **_TTL, **_REFRESH},
    "create": {**_VALUE, **_DIR, **_TTL},
    "createInOrder": {**_VALUE, **_DIR, **_TTL},
    "update": {**_VALUE, **_TTL, **_REFRESH},
    "compareAndSwap": {**_VALUE, **_PREVIOUS, **_TTL, **_REFRESH},
    "delete": {**_DIR, "recursive": _BOOL},
    "compareAndDelete": _PREVIOUS,
}
_OPERATION = {name: field for fields in _ACTIONS.values() for name, field in fields.items()}
_OPERATION |= {"action": _STRING, "key": _STRING}


class _Given(NamedTuple):
    """Fields of an operation."""

    key: bytes
    value: bytes
    dir: bool
    ttl_s: int | None
    refresh: bool
    recursive: bool
    prev_value: bytes | None
    prev_index: int


_COMMANDS: dict[str, Callable[[_Given], Command]] = {
    "set": lambda g: Set(g.key, g.value, g.dir, g.ttl_s, g.refresh),
    "create": lambda g: Create(g.key, g.value, g.dir, g.ttl_s),
    "createInOrder": lambda g: CreateInOrder(g.key, g.value, g.dir, g.ttl_s),
    "update": lambda g: Update(g.key, g.value, g.ttl_s, g.refresh),
    "compareAndSwap": lambda g: CompareAndSwap(
        g.key, g.value, g.prev_value, g.prev_index, g.ttl_s, g.refresh
    ),
    "delete": lambda g: Delete(g.key, g.recursive or g.dir, g.recursive),
    "compareAndDelete": lambda g: CompareAndDelete(g.key, g.prev_value, g.prev_index),
}


def read_body(body: bytes) -> Transaction:
    """Return the transaction of a body.

    Raises:
        ApiError: 210, it is not JSON; 209, not what is wanted; its cause names the place. What is
            wrong with an operation that `/v2/keys` knows has that code, and its `place`.
    """
    try:
        lists = _Reader(body.decode()).lists()
    except UnicodeDecodeError:
        raise _no_json() from None
    when = tuple(_condition(f"when[{n}]", fields) for n, fields in enumerate(lists.get("when", ())))
    ops = tuple(_operation(n, fields) for n, fields in enumerate(lists.get("ops", ())))
    keys = b"".join(item.key for item in (*when, *ops))
    for what, count, most in (
        ("bytes", len(keys), TXN_KEY_BYTES_MAX),
        ("components", keys.count(b"/"), TXN_COMPONENTS_MAX),
    ):
        if count > most:
            cause = f"the keys have {count} {what}, {most} are allowed"
            raise ApiError(INVALID_FIELD, cause.encode(), limit=TOO_MANY_OPERATIONS)
    _check_independent(ops)
    return Transaction(keys, when, ops)


def _check_independent(ops: tuple[Command, ...]) -> None:
    """Refuse two operations of which one concerns the key of the other, or what is below it.

    Where a path begins another one, it begins the one behind it in the order of bytes, too.
    """
    places = sorted((command.key.rstrip(b"/") + b"/", n) for n, command in enumerate(ops))
    for (path, one), (other, two) in pairwise(places):
        if other.startswith(path):
            first, second = sorted((one, two))
            cause = b"operations %d and %d: %b and %b"
            keys = ops[first].key, ops[second].key
            raise ApiError(INVALID_FIELD, cause % (first, second, *keys))


class _Reader:
    """Reads a body from the left to the right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def lists(self) -> dict[str, list[Fields]]:
        """Return the objects of `when` and `ops`."""
        lists: dict[str, list[Fields]] = {}
        for name in self._names("", ("when", "ops"), lists):
            allowed = _CONDITION if name == "when" else _OPERATION
            lists[name] = list(self._objects(name, allowed))
        if self._next():
            raise _no_json()
        return lists

    def _objects(self, name: str, allowed: Mapping[str, _Field]) -> Iterator[Fields]:
        if self._next() != "[":
            raise _wrong(name, "a list is wanted")
        self._position += 1
        for number in self._items("]"):
            if number == TXN_OPS_MAX:
                raise _wrong(name, f"{TXN_OPS_MAX} are allowed", TOO_MANY_OPERATIONS)
            place = f"{name}[{number}]"
            fields: Fields = {}
            for field in self._names(place, allowed, fields):
                fields[field] = self._value(f"{place}.{field}", allowed[field])
            yield fields

    def _names(
        self,
        place: str,
        allowed: Mapping[str, object] | tuple[str, ...],
        given: Mapping[str, object],
    ) -> Iterator[str]:
        """Yield the names of an object's fields, each where its value begins."""
        if self._next() != "{":
            raise _wrong(place, "an object is wanted") if place else _no_json()
        self._position += 1
        for _ in self._items("}"):
            if self._next() != '"':
                raise _no_json()
            name = self._primitive()
            shown = f"{place}.{name[:100]}" if place else name[:100]
            if name not in allowed:
                raise _wrong(shown, "there is no such field")
            if name in given:
                raise _wrong(shown, "it is there twice")
            if self._next() != ":":
                raise _no_json()
            self._position += 1
            yield name

    def _items(self, end: str) -> Iterator[int]:
        """Count the items up to the end of a list or an object; each is read before the next."""
        number = 0
        if self._next() != end:
            while True:
                yield number
                number += 1
                separator = self._next()
                if separator == end:
                    break
                if separator != ",":
                    raise _no_json()
                self._position += 1
        self._position += 1

    def _value(self, place: str, field: _Field) -> object:
        value = self._primitive() if self._next() in _PRIMITIVE else None
        # A bool is an int, too.
        if type(value) is not field.type:
            raise _wrong(place, f"{_MEANING[field.type]} is wanted")
        if isinstance(value, int) and not field.lowest <= value <= _UINT_MAX:
            raise _wrong(place, f"a whole number of 64 bits from {field.lowest} on is wanted")
        return value

    def _primitive(self) -> Any:
        try:
            value, self._position = _DECODER.raw_decode(self._text, self._position)
        except ValueError:
            raise _no_json() from None
        return value

    def _next(self) -> str:
        """Return the next character that is no blank, nothing at the end."""
        blanks = _BLANKS.match(self._text, self._position)
        assert blanks is not None
        self._position = blanks.end()
        return self._text[self._position : self._position + 1]


def _condition(place: str, fields: Fields) -> Condition:
    exists = fields.get("exists", True)
    if not exists:
        for name in fields:
            if name not in ("key", "exists"):
                raise _wrong(f"{place}.{name}", "what is not there has none")
    return Condition(
        _key(place, fields),
        exists,
        fields.get("dir"),
        _read_value(place, fields),
        fields.get("modifiedIndex", 0),
        fields.get("createdIndex", 0),
    )


def _operation(number: int, fields: Fields) -> Command:
    place = f"ops[{number}]"
    action = fields.get("action")
    if action not in _ACTIONS:
        raise _wrong(f"{place}.action", f"one of {', '.join(_ACTIONS)} is wanted")
    for name in fields:
        if name not in ("action", "key", *_ACTIONS[action]):
            raise _wrong(f"{place}.{name}", f"{action} takes none")
    previous = fields.get("prevValue")
    given = _Given(
        key=_key(place, fields),
        value=_read_value(place, fields) or b"",
        dir=fields.get("dir", False),
        ttl_s=fields.get("ttl"),
        refresh=fields.get("refresh", False),
        recursive=fields.get("recursive", False),
        prev_value=None if previous is None else _text(f"{place}.prevValue", previous),
        prev_index=fields.get("prevIndex", 0),
    )
    if given.refresh:
        _check_refresh(number, given)
    if given.dir and given.value:
        raise _wrong(f"{place}.value", "a directory has none")
    if action.startswith("compare") and previous is None and not given.prev_index:
        raise _wrong(place, f"{action} needs prevValue or prevIndex")
    return _COMMANDS[action](given)


def _check_refresh(number: int, given: _Given) -> None:
    """Refuse a refresh as the parameters of `/v2/keys` are refused."""
    refusal = None
    if given.value:
        refusal = ApiError(REFRESH_VALUE, b"A value was provided on a refresh")
    elif given.ttl_s is None:
        refusal = ApiError(REFRESH_TTL_REQUIRED, b"No TTL value set")
    if refusal is not None:
        refusal.place = "op", number
        raise refusal


def _key(place: str, fields: Fields) -> bytes:
    place = f"{place}.key"
    key = fields.get("key")
    if key is None:
        raise _wrong(place, "a key is wanted")
    if not key.startswith("/"):
        raise _wrong(place, "a key begins with a slash")
    return clean_path(_text(place, key)).rstrip(b"/") or b"/"


def _read_value(place: str, fields: Fields) -> bytes | None:
    text, encoded = fields.get("value"), fields.get("valueBase64")
    if encoded is None:
        return None if text is None else _text(f"{place}.value", text)
    if text is not None:
        raise _wrong(f"{place}.valueBase64", "there is a value already")
    try:
        return b64decode(encoded, validate=True)
    except ValueError:
        raise _wrong(f"{place}.valueBase64", "base64 is wanted") from None


def _text(place: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise _wrong(place, "text is wanted") from None


def _no_json() -> ApiError:
    return ApiError(INVALID_FORM, b"the body is no JSON object")


def _wrong(place: str, wanted: str, limit: str = "") -> ApiError:
    cause = f"{place}: {wanted}".encode("utf-8", "replace")
    return ApiError(INVALID_FIELD, cause, limit=limit)
