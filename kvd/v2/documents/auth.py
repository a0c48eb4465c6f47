"""Users, roles and permissions of etcd's v2 auth.

Documents:

    "user"      the user with the names of its roles; its secret is the hash of the password
    "role"      the role
    "setting"   "auth" -> true | false: whether authentication is on

The user root has the role root always, and that role is built in. Users and roles are not checked
against each other: a role that does not exist allows nothing.

Rules, texts and statuses are those of etcd 3.4 (etcdserver/api/v2auth/auth.go and
v2http/client_auth.go). Three are different on purpose: an empty pattern matches nothing (etcd drops
the connection), lists show all names (in etcd those that begin with `_` are hidden), and what is
recursive is judged alike for guests and users. Commands that change it: auth_commands.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from heapq import merge

from kvd.storage.format.records import Document
from kvd.v2 import go_json
from kvd.v2.documents.auth_json import (
    Names,
    Permissions,
    Role,
    User,
    role_fields,
    stored_role,
    stored_user,
)
from kvd.v2.documents.decision import AllDocuments, Documents
from kvd.v2.errors import RouteError

ROOT, GUEST = "root", "guest"
"""The names of users and roles that mean something."""

USER, ROLE, SETTING = "user", "role", "setting"
"""What documents are about."""

ENABLED = "auth"
EVERYTHING = Permissions(("/*",), ("/*",))
_ROOT_ROLE = Role(ROOT, EVERYTHING)

# How many names are sorted at once, which takes 2 ms, and read before others may have their turn.
_RUN = 4096
_PIECE = 64
# What a name takes in memory besides its characters.
_NAME_BYTES = 64


def is_enabled(state: Documents) -> bool:
    """Return whether authentication is on."""
    document = state.document(SETTING, ENABLED)
    return document is not None and document.content == b"true"


def find_user(state: Documents, name: str) -> User | None:
    """Return a user, or None."""
    document = state.document(USER, name)
    return None if document is None else _user(document)


def find_role(state: Documents, name: str) -> Role | None:
    """Return a role, or None."""
    if name == ROOT:
        return _ROOT_ROLE
    document = state.document(ROLE, name)
    return None if document is None else _role(document)


def users_json(state: AllDocuments, keep: Callable[[int], None]) -> Iterator[bytes]:
    """Yield all users with those of their roles that exist, as JSON in short pieces.

    A list repeats each role for each of its users, so it may be far longer than what is stored.

    Args:
        state: where they are.
        keep: called with what is kept in memory meanwhile, in bytes.
    """
    runs = yield from _runs(state, USER, keep)
    names = merge(*runs)
    users = (_user_json(name, _roles_of(state, name)) for name in names)
    yield from _list_json("users", users)


def user_json(state: Documents, keep: Callable[[int], None], *, name: str) -> Iterator[bytes]:
    """Yield a user with its roles, as JSON in short pieces.

    Raises:
        RouteError: 404, the user or one of its roles does not exist.
    """
    names = existing_user(state, name).roles or ()
    for role in dict.fromkeys(names):
        existing_role(state, role)
    yield from _user_json(name, (find_role(state, role) for role in names))
    yield b"\n"


def roles_json(state: AllDocuments, keep: Callable[[int], None]) -> Iterator[bytes]:
    """Yield all roles, as JSON in short pieces; see `users_json`."""
    runs = yield from _runs(state, ROLE, keep)
    roles = (existing_role(state, name) for name in merge(*runs, [ROOT]))
    yield from _list_json("roles", ((go_json.encode(role_fields(role)),) for role in roles))


def role_json(state: Documents, _: Callable[[int], None], *, name: str) -> Iterator[bytes]:
    """Yield a role, as JSON.

    Raises:
        RouteError: 404, it does not exist.
    """
    yield go_json.encode(role_fields(existing_role(state, name))) + b"\n"


def _runs(
    state: AllDocuments, what: str, keep: Callable[[int], None]
) -> Generator[bytes, None, list[list[str]]]:
    """Return the names of all documents of one sort, in sorted lists; nothing is yielded, often.

    Neither to read nor to sort a hundred thousand of them is done in one turn of the loop.
    """
    runs: list[list[str]] = [[]]
    for number, document in enumerate(state.each_document(what), 1):
        keep(len(document.name) + _NAME_BYTES)
        runs[-1].append(document.name)
        if number % _RUN == 0:
            runs[-1].sort()
            runs.append([])
        if number % _PIECE == 0:
            yield b""
    runs[-1].sort()
    return runs


def _roles_of(state: Documents, name: str) -> Iterator[Role | None]:
    return (find_role(state, role) for role in existing_user(state, name).roles or ())


def _list_json(name: str, items: Iterable[Iterable[bytes]]) -> Iterator[bytes]:
    yield b'{"%b":' % name.encode()
    start = b"["
    for item in items:
        yield start
        yield from item
        start = b","
    yield b"null}\n" if start == b"[" else b"]}\n"


def _user_json(name: str, roles: Iterable[Role | None]) -> Iterator[bytes]:
    """Yield a user with its roles in full; without the field where it has none."""
    yield b'{"user":' + go_json.encode(name)
    start = b',"roles":['
    for role in roles:
        if role is not None:
            yield start + go_json.encode(role_fields(role))
            start = b","
    yield b"]}" if start == b"," else b"}"


def _user(document: Document) -> User:
    assert document.content is not None
    user = stored_user(document.name, document.content, document.secret)
    return user._replace(roles=with_root(user.name, user.roles))


def _role(document: Document) -> Role:
    assert document.content is not None
    return stored_role(document.content)


def with_root(name: str, roles: Names | None) -> Names | None:
    """Return the roles of a user, those of root with the role root."""
    return (*(roles or ()), ROOT) if name == ROOT and ROOT not in (roles or ()) else roles


def existing_user(state: Documents, name: str) -> User:
    """Return a user.

    Raises:
        RouteError: 404, it does not exist.
    """
    user = find_user(state, name)
    if user is None:
        raise refusal(404, f"User {name} does not exist.")
    return user


def existing_role(state: Documents, name: str) -> Role:
    """Return a role.

    Raises:
        RouteError: 404, it does not exist.
    """
    role = find_role(state, name)
    if role is None:
        raise refusal(404, f"Role {name} does not exist.")
    return role


def refusal(status: int, message: str) -> RouteError:
    """Return an error of these rules."""
    return RouteError(status, f"auth: {message}")


class Grants:
    """Permissions of a role, indexed: a key is judged without a pass over all patterns."""

    __slots__ = ("_is_root", "_read", "_write")

    def __init__(self, role: Role) -> None:
        self._is_root = role.name == ROOT
        self._read = _Patterns(role.permissions.read or ())
        self._write = _Patterns(role.permissions.write or ())

    def allow(self, key: bytes, *, write: bool, recursive: bool) -> bool:
        """Return whether an access is allowed.

        Args:
            key: the path as it was asked for, behind `/v2/keys`: a slash at its end counts.
            write: it changes something.
            recursive: it is about all below the key, which only a pattern that ends in `*` allows.
        """
        patterns = self._write if write else self._read
        return self._is_root or patterns.match(key, recursive=recursive)


class _Patterns:
    """Patterns: keys, and, those that end in `*`, what keys begin with."""

    __slots__ = ("_keys", "_lengths", "_prefixes")

    def __init__(self, patterns: Iterable[str]) -> None:
        encoded = [pattern.encode() for pattern in patterns if pattern]
        self._keys = frozenset(pattern for pattern in encoded if not pattern.endswith(b"*"))
        self._prefixes = frozenset(pattern[:-1] for pattern in encoded if pattern.endswith(b"*"))
        self._lengths = sorted({len(prefix) for prefix in self._prefixes})

    def match(self, key: bytes, *, recursive: bool) -> bool:
        if not recursive and key in self._keys:
            return True
        return any(key[:length] in self._prefixes for length in self._lengths)


def roles_allow(
    names: Iterable[str],
    find: Callable[[str], Grants | None],
    key: bytes,
    *,
    write: bool,
    recursive: bool,
) -> bool:
    """Return whether one of some roles allows an access; see `Grants.allow`."""
    roles = map(find, names)
    return any(role and role.allow(key, write=write, recursive=recursive) for role in roles)


def below(key: bytes) -> bytes:
    """Return what a pattern must begin with, and end in `*`, to allow the children of a key."""
    return key.rstrip(b"/") + b"/"
