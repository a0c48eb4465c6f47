"""Commands that change users and roles: each is decided on the present state, or refused.

The checks are those of etcd: a user may get roles that do not exist, and a `null` list differs from
an empty one in the decision whether an update changes anything.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

from kvd.storage.format.records import Document, Kind
from kvd.v2 import go_json
from kvd.v2.documents.auth import (
    ENABLED,
    EVERYTHING,
    GUEST,
    ROLE,
    ROOT,
    SETTING,
    USER,
    existing_role,
    existing_user,
    find_role,
    find_user,
    is_enabled,
    refusal,
    with_root,
)
from kvd.v2.documents.auth_json import Names, Permissions, Role, User, role_fields, user_fields
from kvd.v2.documents.decision import Decision, Documents, Reply


class PutUser(NamedTuple):
    """Make a user, or change one; `secret` is the hash of a new password, None without one."""

    name: str
    secret: bytes | None
    roles: Names | None = None
    grant: Names | None = None
    revoke: Names | None = None


class DeleteUser(NamedTuple):
    """Remove a user."""

    name: str


class PutRole(NamedTuple):
    """Make a role, or change one."""

    role: Role


class DeleteRole(NamedTuple):
    """Remove a role."""

    name: str


class Switch(NamedTuple):
    """Turn authentication on or off."""

    on: bool


Command = PutUser | DeleteUser | PutRole | DeleteRole | Switch


def decide(state: Documents, command: Command) -> Decision:
    """Return what a command comes to.

    Raises:
        RouteError: it is refused.
    """
    match command:
        case PutUser():
            return _put_user(state, command)
        case DeleteUser(name):
            return _delete_user(state, name)
        case PutRole(role):
            return _change_role(state, role) if role.asks_for_changes else _make_role(state, role)
        case DeleteRole(name):
            return _delete_role(state, name)
        case Switch(on):
            return _enable(state) if on else _disable(state)
        case _:
            assert_never(command)


def _put_user(state: Documents, command: PutUser) -> Decision:
    changes = command.grant or command.revoke
    if not changes and command.roles:
        return _make_user(state, command, 200)
    if not changes and find_user(state, command.name) is None:
        return _make_user(state, command, 201)
    return _change_user(state, command)


def _make_user(state: Documents, command: PutUser, status: int) -> Decision:
    name = command.name
    if command.secret is None:
        raise refusal(400, f"Cannot create user {name} with an empty password")
    if find_user(state, name) is not None:
        raise refusal(409, f"User {name} already exists.")
    return _put(User(name, with_root(name, command.roles), command.secret), status)


def _change_user(state: Documents, command: PutUser) -> Decision:
    old = existing_user(state, command.name)
    roles = set(old.roles or ())
    for role in command.grant or ():
        if role in roles:
            raise refusal(409, f"Granting duplicate role {role} for user {old.name}")
        roles.add(role)
    for role in command.revoke or ():
        if role not in roles:
            raise refusal(409, f"Revoking ungranted role {role} for user {old.name}")
        roles.remove(role)
    new = User(old.name, tuple(sorted(roles)), command.secret or old.secret)
    if new == old:
        raise refusal(400, "User not updated. Use grant/revoke/password to update the user.")
    return _put(new, 200)


def _put(user: User, status: int) -> Decision:
    content = go_json.encode(user_fields(user))
    document = Document(Kind.AUTH, USER, user.name, content, user.secret)
    return Decision([document], Reply(status, content + b"\n"))


def _delete_user(state: Documents, name: str) -> Decision:
    if name == ROOT and is_enabled(state):
        raise refusal(403, "Cannot delete root user while auth is enabled.")
    if state.document(USER, name) is None:
        raise refusal(404, f"User {name} does not exist")
    return Decision([Document(Kind.AUTH, USER, name, None)], Reply())


def _make_role(state: Documents, role: Role) -> Decision:
    _check_not_root(role.name)
    if state.document(ROLE, role.name) is not None:
        raise refusal(409, f"Role {role.name} already exists.")
    return _put_role(role, 201)


def _change_role(state: Documents, asked: Role) -> Decision:
    _check_not_root(asked.name)
    old = existing_role(state, asked.name)
    permissions = old.permissions
    for ask, change in ((asked.grant, _granted), (asked.revoke, _revoked)):
        if ask is not None:
            permissions = Permissions(
                change(permissions.read, ask.read, "read"),
                change(permissions.write, ask.write, "write"),
            )
    new = Role(old.name, permissions)
    if new == old:
        raise refusal(400, "Role not updated. Use grant/revoke to update the role.")
    return _put_role(new, 200)


def _granted(old: Names | None, asked: Names | None, verb: str) -> Names:
    patterns = set(old or ())
    for pattern in asked or ():
        if pattern in patterns:
            raise refusal(409, f"Granting duplicate {verb} permission {pattern}")
        patterns.add(pattern)
    return tuple(sorted(patterns))


def _revoked(old: Names | None, asked: Names | None, _verb: str) -> Names:
    return tuple(sorted(set(old or ()) - set(asked or ())))


def _put_role(role: Role, status: int) -> Decision:
    content = go_json.encode(role_fields(role))
    document = Document(Kind.AUTH, ROLE, role.name, content)
    return Decision([document], Reply(status, content + b"\n"))


def _delete_role(state: Documents, name: str) -> Decision:
    _check_not_root(name)
    if state.document(ROLE, name) is None:
        raise refusal(404, f"Role {name} doesn't exist.")
    return Decision([Document(Kind.AUTH, ROLE, name, None)], Reply())


def _check_not_root(name: str) -> None:
    if name == ROOT:
        raise refusal(403, f"Cannot modify role {name}: is root role.")


def _enable(state: Documents) -> Decision:
    if is_enabled(state):
        raise refusal(409, "already enabled")
    if find_user(state, ROOT) is None:
        raise refusal(409, "No root user available, please create one")
    documents = []
    if find_role(state, GUEST) is None:
        # A guest may do everything, as before, until an administrator changes the role.
        documents += _put_role(Role(GUEST, EVERYTHING), 201).documents
    return Decision([*documents, Document(Kind.AUTH, SETTING, ENABLED, b"true")], Reply())


def _disable(state: Documents) -> Decision:
    if not is_enabled(state):
        raise refusal(409, "already disabled")
    return Decision([Document(Kind.AUTH, SETTING, ENABLED, b"false")], Reply())
