"""Commands that change documents next to the keys: users, roles, members. One table of them all.

They are plain values: a member may send one to another, which decides it on its own state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvd.v2.documents import auth_commands, member_commands
from kvd.v2.documents.auth_commands import DeleteRole, DeleteUser, PutRole, PutUser, Switch
from kvd.v2.documents.auth_json import Permissions, Role
from kvd.v2.documents.decision import Decision, Documents
from kvd.v2.documents.member_commands import (
    AddMember,
    PublishMember,
    PutMember,
    RemoveMember,
)

EntryCommand = auth_commands.Command | member_commands.Command

_DECIDE: dict[type, Callable[[Documents, Any], Decision]] = {
    **dict.fromkeys((PutUser, DeleteUser, PutRole, DeleteRole, Switch), auth_commands.decide),
    **dict.fromkeys((PutMember, PublishMember, AddMember, RemoveMember), member_commands.decide),
}
# The numbers are part of what members send each other.
_NUMBERS: dict[type, int] = {
    PutUser: 1,
    DeleteUser: 2,
    PutRole: 3,
    DeleteRole: 4,
    Switch: 5,
    PutMember: 6,
    PublishMember: 7,
    AddMember: 8,
    RemoveMember: 9,
}
_TYPES = {number: command for command, number in _NUMBERS.items()}


def decide_entries(state: Documents, command: EntryCommand) -> Decision:
    """Return what a command comes to; it depends on the state and the command only.

    Raises:
        RouteError: it is refused.
    """
    return _DECIDE[type(command)](state, command)


def plain(command: EntryCommand) -> list[Any]:
    """Return a command as lists of what CBOR knows: its number and its fields."""
    return [_NUMBERS[type(command)], *_plain_fields(command)]


def from_plain(item: Any) -> EntryCommand:
    """Return the command that `plain` has made a list of.

    Raises:
        ValueError: it is none.
    """
    try:
        number, *fields = item
        if number == _NUMBERS[PutRole]:
            ((name, permissions, *changes),) = fields
            grant, revoke = (None if one is None else _permissions(one) for one in changes)
            return PutRole(Role(name, _permissions(permissions), grant, revoke))
        command: EntryCommand = _TYPES[number](*map(_names, fields))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"no command: {error}") from None
    return command


def _plain_fields(value: Any) -> Any:
    return list(map(_plain_fields, value)) if isinstance(value, tuple) else value


def _names(field: Any) -> Any:
    return tuple(field) if isinstance(field, list) else field


def _permissions(item: Any) -> Permissions:
    return Permissions(*map(_names, item))
