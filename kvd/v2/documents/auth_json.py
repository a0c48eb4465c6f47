"""Users and roles as JSON, in requests, in answers and as they are stored.

    user   {"user", "password", "roles", "grant", "revoke"}
    role   {"role", "permissions": {"kv": {"read", "write"}}, "grant": {"kv"}, "revoke": {"kv"}}

As in Go an absent list (null, None here) differs from an empty one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kvd.v2 import go_json
from kvd.v2.errors import RouteError

# It takes a microsecond or two to read an element or a field, and others wait for that.
ELEMENTS_MAX = 16_384
"""Elements of lists and fields of objects that a request may have."""

Names = tuple[str, ...]
Fields = dict[str, go_json.Value]


class Permissions(NamedTuple):
    """Patterns of keys: those that may be read, and those that may be written."""

    read: Names | None = None
    write: Names | None = None


class User(NamedTuple):
    """A user; `secret` is the bcrypt hash of the password."""

    name: str
    roles: Names | None
    secret: bytes


class Role(NamedTuple):
    """A role; in a request `grant` and `revoke` may ask for changes."""

    name: str = ""
    permissions: Permissions = Permissions()
    grant: Permissions | None = None
    revoke: Permissions | None = None

    @property
    def asks_for_changes(self) -> bool:
        """Whether there is anything to be granted or revoked."""
        return any(any(permissions or ()) for permissions in (self.grant, self.revoke))


class UserRequest(NamedTuple):
    """A user as a request describes it."""

    name: str = ""
    password: str = ""
    roles: Names | None = None
    grant: Names | None = None
    revoke: Names | None = None


def read_user(body: bytes, name: str) -> UserRequest:
    """Return the user of a request's body, which must be the one in its URL.

    Raises:
        RouteError: 400, it is no such document, names another user or contradicts itself; 413,
            it has too many elements.
    """
    _check_size(body)
    try:
        user = _user(go_json.decode(body, whole=False, explain=False))
    except go_json.Malformed:
        raise RouteError(400, "Invalid JSON in request body.") from None
    if user.name != name:
        raise RouteError(400, "User JSON name does not match the name in the URL")
    if user.roles and (user.grant or user.revoke):
        raise RouteError(400, "User JSON contains both roles and grant/revoke")
    return user


def read_role(body: bytes, name: str) -> Role:
    """Return what the body of a request says of the role in its URL.

    Raises:
        RouteError: as for `read_user`.
    """
    _check_size(body)
    try:
        role = _role(go_json.decode(body, whole=False, explain=False))
    except go_json.Malformed:
        raise RouteError(400, "Invalid JSON in request body.") from None
    if role.name != name:
        raise RouteError(400, "Role JSON name does not match the name in the URL")
    if role.asks_for_changes and any(role.permissions):
        raise RouteError(400, "Role JSON contains both permissions and grant/revoke")
    return role


def _check_size(body: bytes) -> None:
    if body.count(b",") >= ELEMENTS_MAX:
        raise RouteError(413, f"Request body with more than {ELEMENTS_MAX} elements.")


def stored_user(name: str, content: bytes, secret: bytes | None) -> User:
    """Return the user of a stored document."""
    return User(name, _user(go_json.decode(content)).roles, secret or b"")


def stored_role(content: bytes) -> Role:
    """Return the role of a stored document."""
    return _role(go_json.decode(content))


def user_fields(user: User) -> Fields:
    """Return a user without its password, its roles by their names: so it is stored, too."""
    return {"user": user.name, "roles": user.roles}


def role_fields(role: Role) -> Fields:
    """Return a role; so it is stored, too."""
    fields: Fields = {"role": role.name, "permissions": {"kv": role.permissions._asdict()}}
    for name, permissions in (("grant", role.grant), ("revoke", role.revoke)):
        if permissions is not None:
            fields[name] = {"kv": permissions._asdict()}
    return fields


def _user(value: go_json.Value) -> UserRequest:
    user = UserRequest()
    for name, field in _fields(value, ("user", "password", "roles", "grant", "revoke")):
        match name:
            case "user":
                user = user._replace(name=_text(field, user.name))
            case "password":
                user = user._replace(password=_text(field, user.password))
            case "roles":
                user = user._replace(roles=_names(field))
            case "grant":
                user = user._replace(grant=_names(field))
            case "revoke":
                user = user._replace(revoke=_names(field))
    return user


def _role(value: go_json.Value) -> Role:
    role = Role()
    for name, field in _fields(value, ("role", "permissions", "grant", "revoke")):
        match name:
            case "role":
                role = role._replace(name=_text(field, role.name))
            case "permissions":
                role = role._replace(permissions=_permissions(field, role.permissions))
            case "grant":
                role = role._replace(grant=_asked(field))
            case "revoke":
                role = role._replace(revoke=_asked(field))
    return role


def _asked(value: go_json.Value) -> Permissions | None:
    return None if value is None else _permissions(value, Permissions())


def _permissions(value: go_json.Value, given: Permissions) -> Permissions:
    for _, kv in _fields(value, ("kv",)):
        for name, field in _fields(kv, Permissions._fields):
            given = given._replace(**{name: _names(field)})
    return given


def _text(value: go_json.Value, given: str) -> str:
    return given if value is None else go_json.text_of(value)


def _fields(value: go_json.Value, names: Names) -> Iterable[tuple[str, go_json.Value]]:
    if value is None:
        return ()
    if not isinstance(value, tuple):
        raise go_json.Malformed(go_json.name_of(value))
    return go_json.fields(value, names)


def _names(value: go_json.Value) -> Names | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise go_json.Malformed(go_json.name_of(value))
    return tuple(map(go_json.text_of, value))
