"""Commands, and what they are refused with, as lists of what CBOR knows, for links.

    command     [number, *fields]: those of the named tuple, in their order
    transaction [8, keys, conditions, commands]
    documents   [9, *fields of entries.plain]
    refusal     [code, cause, index, limit, place]   of the key space
                [0, status, message]                 of documents

Numbers and fields are part of what replicas of different versions send each other.
"""

from __future__ import annotations

from itertools import product
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

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
from kvd.v2.documents.entries import EntryCommand
from kvd.v2.documents.entries import from_plain as entry_from_plain
from kvd.v2.documents.entries import plain as plain_entry
from kvd.v2.errors import TABLE, ApiError, RouteError

AnyCommand = Command | Transaction | EntryCommand

_COMMANDS: dict[int, type[Command]] = {
    1: Set,
    2: Create,
    3: CreateInOrder,
    4: Update,
    5: CompareAndSwap,
    6: Delete,
    7: CompareAndDelete,
}
_NUMBERS = {command: number for number, command in _COMMANDS.items()}
_TRANSACTION, _ENTRY = 8, 9
_new = tuple.__new__


def _types(of: type) -> frozenset[tuple[type, ...]]:
    """Return the types that the fields of a named tuple may have."""
    hints = get_type_hints(of).values()
    kinds = [get_args(hint) if isinstance(hint, UnionType) else (hint,) for hint in hints]
    return frozenset(product(*kinds))


_FIELDS = {number: _types(command) for number, command in _COMMANDS.items()}
_CONDITION = _types(Condition)


def plain(command: AnyCommand) -> list[Any]:
    """Return a command as a list."""
    number = _NUMBERS.get(type(command))  # type: ignore[arg-type]
    if number is not None:
        return [number, *command]
    if isinstance(command, Transaction):
        when, ops = map(list, command.when), map(plain, command.ops)
        return [_TRANSACTION, command.keys, list(when), list(ops)]
    return [_ENTRY, *plain_entry(command)]  # type: ignore[arg-type]


def from_plain(item: Any) -> AnyCommand:
    """Return the command that `plain` has made a list of.

    Raises:
        ValueError: it is none that this version knows.
    """
    match item:
        case [8, bytes(keys), list(when), list(ops)]:
            return Transaction(keys, tuple(map(_condition, when)), tuple(map(_command, ops)))
        case [9, *entry]:
            return _entry(entry)
        case _:
            return _command(item)


def _command(item: Any) -> Command:
    if not (isinstance(item, list) and item and type(item[0]) is int):
        raise ValueError(f"no command: {item!r:.60}")
    number, *fields = item
    if tuple(map(type, fields)) not in _FIELDS.get(number, ()):
        raise ValueError(f"no command, or none with these fields: {item!r:.60}")
    return _new(_COMMANDS[number], fields)


def _entry(item: list[Any]) -> EntryCommand:
    command = entry_from_plain(item)
    if not _fits(command, type(command)):
        raise ValueError(f"no fields of a change of documents: {item!r:.60}")
    return command


def _fits(value: object, hint: Any) -> bool:
    """Return whether a value is what a type hint of a named tuple says."""
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        of = get_args(hint)[0]
        return isinstance(value, tuple) and all(_fits(item, of) for item in value)
    if type(value) is not hint:
        return False
    return not isinstance(value, tuple) or all(map(_fits, value, get_type_hints(hint).values()))


def _condition(item: Any) -> Condition:
    if not isinstance(item, list) or tuple(map(type, item)) not in _CONDITION:
        raise ValueError(f"no condition: {item!r:.60}")
    return _new(Condition, item)


def size_of(command: AnyCommand) -> int:
    """Return about how many bytes a command has."""
    return 64 + sum([len(f) if type(f) is bytes else _size(f) for f in command])


def _size(field: object) -> int:
    if isinstance(field, bytes | str):
        return len(field)
    return sum(map(_size, field), 8) if isinstance(field, tuple) else 8


def plain_refusal(refusal: ApiError | RouteError) -> list[Any]:
    """Return a refusal as a list."""
    if isinstance(refusal, RouteError):
        return [0, refusal.status, refusal.message]
    place = None if refusal.place is None else list(refusal.place)
    return [refusal.code, refusal.cause, refusal.index, refusal.limit, place]


def refusal_from_plain(item: Any) -> ApiError | RouteError:
    """Return the refusal that `plain_refusal` has made a list of.

    Raises:
        ValueError: it is none that this version knows.
    """
    match item:
        case [0, int(status), str(message)]:
            return RouteError(status, message)
        case [int(code), bytes(cause), int(index), str(limit), None | [str(), int()] as place] if (
            code in TABLE
        ):
            refusal = ApiError(code, cause, index, limit)
            if place is not None:
                refusal.place = place[0], place[1]
            return refusal
        case _:
            raise ValueError(f"no refusal: {item!r:.60}")
