"""Who there is and what they may do: users, roles and permissions of etcd's v2 auth.

    entry  "user"      the user with the names of its roles; its secret is the hash of the password
           "role"      the role
           "setting"   "auth" -> true | false: whether users are asked for

The user root has the role root always, and that role is built in. Users and roles are not checked
against each other: a role that does not exist allows nothing.

Rules, texts and statuses are those of etcd 3.4 (etcdserver/api/v2auth/auth.go and
v2http/client_auth.go). Three are different on purpose: an empty pattern matches nothing (etcd drops
the connection), lists show all names (in etcd those that begin with `_` are hidden), and what is
recursive is judged alike for guests and users. How all this changes is in kvd/authchanges.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kvd import gojson
from kvd.authjson import (
    Names,
    Permissions,
    Role,
    User,
    role_fields,
    stored_role,
    stored_user,
    user_with_roles,
)
from kvd.entries import Entries
from kvd.errors import RouteError
from storage.change import Entry

ROOT, GUEST = "root", "guest"
"""The names of users and roles that mean something."""

USER, ROLE, SETTING = "user", "role", "setting"
"""What entries are about."""

ENABLED = "auth"
EVERYTHING = Permissions(("/*",), ("/*",))
_ROOT_ROLE = Role(ROOT, EVERYTHING)


def is_enabled(state: Entries) -> bool:
    """Return whether users are asked for."""
    entry = state.entry(SETTING, ENABLED)
    return entry is not None and entry.document == b"true"


def find_user(state: Entries, name: str) -> User | None:
    """Return a user, or None."""
    entry = state.entry(USER, name)
    return None if entry is None else _user(entry)


def find_role(state: Entries, name: str) -> Role | None:
    """Return a role, or None."""
    if name == ROOT:
        return _ROOT_ROLE
    entry = state.entry(ROLE, name)
    return None if entry is None else _role(entry)


def users_body(state: Entries) -> bytes:
    """Return all users with those of their roles that exist, as JSON."""
    users = []
    for user in map(_user, state.entries(USER)):
        roles = [role for name in user.roles or () if (role := find_role(state, name))]
        users.append(user_with_roles(user.name, roles))
    return _line({"users": users or None})


def user_body(state: Entries, name: str) -> bytes:
    """Return a user with its roles, as JSON.

    Raises:
        RouteError: 404, the user or one of its roles does not exist.
    """
    roles = [existing_role(state, role) for role in existing_user(state, name).roles or ()]
    return _line(user_with_roles(name, roles))


def roles_body(state: Entries) -> bytes:
    """Return all roles, as JSON."""
    roles = [_ROOT_ROLE, *map(_role, state.entries(ROLE))]
    by_name = sorted(roles, key=lambda role: role.name)
    return _line({"roles": [role_fields(role) for role in by_name]})


def role_body(state: Entries, name: str) -> bytes:
    """Return a role, as JSON.

    Raises:
        RouteError: 404, it does not exist.
    """
    return _line(role_fields(existing_role(state, name)))


def _user(entry: Entry) -> User:
    assert entry.document is not None
    user = stored_user(entry.name, entry.document, entry.secret)
    return user._replace(roles=with_root(user.name, user.roles))


def _role(entry: Entry) -> Role:
    assert entry.document is not None
    return stored_role(entry.document)


def with_root(name: str, roles: Names | None) -> Names | None:
    """Return the roles of a user, those of root with the role root."""
    return (*(roles or ()), ROOT) if name == ROOT and ROOT not in (roles or ()) else roles


def existing_user(state: Entries, name: str) -> User:
    """Return a user.

    Raises:
        RouteError: 404, it does not exist.
    """
    user = find_user(state, name)
    if user is None:
        raise refusal(404, f"User {name} does not exist.")
    return user


def existing_role(state: Entries, name: str) -> Role:
    """Return a role.

    Raises:
        RouteError: 404, it does not exist.
    """
    role = find_role(state, name)
    if role is None:
        raise refusal(404, f"Role {name} does not exist.")
    return role


def _line(fields: gojson.Value) -> bytes:
    return gojson.encode(fields) + b"\n"


def refusal(status: int, message: str) -> RouteError:
    """Return an error of these rules."""
    return RouteError(status, f"auth: {message}")


def allows(role: Role, key: bytes, *, write: bool, recursive: bool) -> bool:
    """Return whether a role allows an access.

    Args:
        role: the role.
        key: the path as it was asked for, behind `/v2/keys`: a slash at its end counts.
        write: it changes something.
        recursive: it is about all below the key, which only a pattern that ends in `*` allows.
    """
    if role.name == ROOT:
        return True
    for pattern in (role.permissions.write if write else role.permissions.read) or ():
        if pattern.endswith("*"):
            if key.startswith(pattern[:-1].encode()):
                return True
        elif not recursive and pattern and key == pattern.encode():
            return True
    return False


def roles_allow(
    names: Iterable[str],
    find: Callable[[str], Role | None],
    key: bytes,
    *,
    write: bool,
    recursive: bool,
) -> bool:
    """Return whether one of some roles allows an access; see `allows`."""
    roles = map(find, names)
    return any(role and allows(role, key, write=write, recursive=recursive) for role in roles)


def below(key: bytes) -> bytes:
    """Return what a pattern must begin with, and end in `*`, to allow the children of a key."""
    return key.rstrip(b"/") + b"/"
