"""Who asks, and whether they may: the check before a request, where users are asked for.

While they are not, `enabled` is False and nothing else here is reached. It is read from the
committed state, as users and roles are; the committer says when they have changed.

Without an Authorization header it is the user whom a client certificate names, where these count,
or else a guest. With one it is the user of that name and password, or nobody: no guest either. A
request is let in by what is committed when its password has been checked; a watch ends when the
right to it does. A form is not taken, let alone parsed, before its sender is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import NamedTuple

from kvd.core.watch.watchers import Watcher
from kvd.handlers.keys.key_space import PASSWORDS, KeySpace
from kvd.handlers.passwords import Basic, Busy, Credentials, read_basic
from kvd.http.connection import Connection
from kvd.http.peer import Peer
from kvd.limits.bounded import Bounded
from kvd.limits.memory import SMALL_BYTES, NoRoom
from kvd.storage.index.errors import BROKEN
from kvd.storage.index.view import View
from kvd.storage.store import Store
from kvd.v2.commands import Create, CreateInOrder, Get, Request, Set, Update, Watch
from kvd.v2.documents import auth
from kvd.v2.documents.auth_json import User
from kvd.v2.errors import RAFT_INTERNAL, UNAUTHORIZED, ApiError, RouteError
from kvd.v2.form import TakesLong
from kvd.v2.request import Parsed, parse

log = logging.getLogger(__name__)

# Users, and roles, are kept as they were read until something changes: so much of each.
_KEPT_BYTES_MAX = 8 << 20
# What a text in one of them takes beside its bytes; a character may take four.
_TEXT_BYTES = 64
# How long a stop waits for passwords: guesses at them may fill the queue for a minute, and a stop
# that takes ten seconds is ended without a clean mark.
_SETTLE_S = 2.0
# A response that lists users or roles, which is in memory twice for a moment; and how long it is
# rendered in one turn of the loop.
_LIST_BYTES_MAX = 64 << 20
_SLICE_S = 0.004
DENIED = b"Insufficient credentials"
_BUSY = "too many passwords are being checked"


class Caller(NamedTuple):
    """Who says to be asking: by the Authorization header, by a certificate that names a user.

    `network` is the client's; clients of one network share the checks of passwords.
    """

    authorization: str = ""
    common_name: str = ""
    network: str = ""


def caller_of(headers: list[str], peer: Peer) -> Caller:
    """Return who asks; of several Authorization headers the first counts."""
    return Caller(headers[0] if headers else "", peer.common_name, peer.network)


class KeyHead(NamedTuple):
    """The head of a request to the key space, by which it is judged.

    `path` is the key as it was asked for, decoded, behind `/v2/keys`; None where the body names the
    keys, each of which is judged for itself.
    """

    connection: Connection
    method: str
    path: bytes | None
    caller: Caller


class KeyRequest(NamedTuple):
    """A complete request to the key space, as `KeySpace.serve` takes it."""

    head: KeyHead
    key: bytes
    query: bytes
    form: bytes
    parsed: Parsed | None = None


class Admission(NamedTuple):
    """Whom a request was let in as, and by which state of users and roles."""

    user: User | None
    state: int


Admitted = Callable[[Admission | ApiError], None]


class Rights:
    """What the sender of one request may do with its key: a user, or a guest (None).

    A pattern that ends in `*` is a prefix, any other one is that key alone: its children are not
    part of it. So a directory is listed, given children by POST, and given a TTL (which ends them
    all) only where a prefix allows its children; etcd takes the key alone for enough.
    """

    __slots__ = ("_guard", "_path", "_user")

    def __init__(self, guard: Guard, user: User | None, path: bytes) -> None:
        self._guard = guard
        self._user = user
        self._path = path

    def may(self, *, write: bool, recursive: bool = False, children: bool = False) -> bool:
        """Return whether the key, or what is below it, may be read or changed."""
        user, guard = self._user, self._guard
        names = (auth.GUEST,) if user is None else user.roles or ()
        path = auth.below(self._path) if children else self._path
        return not guard.enabled or auth.roles_allow(
            names, guard.grants, path, write=write, recursive=recursive or children
        )

    def narrow(self, request: Request, *, recursive: bool) -> Request:
        """Return a request as far as it is allowed.

        Raises:
            ApiError: it is not allowed.
        """
        write = not isinstance(request, (Get, Watch))
        children = write and self._concerns_children(request)
        if not self.may(write=write, recursive=recursive) or (
            children and not self.may(write=True, children=True)
        ):
            raise ApiError(UNAUTHORIZED, DENIED)
        if isinstance(request, Get) and not self.may(write=False, children=True):
            return request._replace(may_list=False)
        return request

    def _concerns_children(self, command: Request) -> bool:
        match command:
            case CreateInOrder():
                node = self._guard.state.find(command.key)
                return node is None or node.dir_id != 0
            case Set() | Create():
                return command.dir and command.ttl_s is not None
            case Update():
                node = self._guard.state.find(command.key)
                return node is not None and node.dir_id != 0
            case _:
                return False

    def may_read(self) -> bool:
        """Return whether the value of the key may be shown."""
        return self.may(write=False)

    def still_allow(self, *, recursive: bool) -> bool:
        """Return whether a watch may go on, now that users or roles have changed."""
        user = self._user
        if user is not None:
            now = self._guard.user(user.name)
            # Whoever has the old password only is not that user any more.
            if now is None or now.secret != user.secret:
                return False
            self._user = now
        return self.may(write=False, recursive=recursive)


class Guard:
    """Lets requests in, or not."""

    def __init__(
        self,
        *,
        store: Store,
        credentials: Credentials,
        keys: KeySpace,
        on_damage: Callable[[BaseException], None],
        open_urls: Sequence[str],
    ) -> None:
        self.enabled = False
        """Whether users are asked for."""
        self.on_refresh: Callable[[], None] = lambda: None
        """Called when users or roles have changed."""
        self.damaged = on_damage
        """To be told of damage to the index, which ends the process."""
        self._store = store
        # Counts the changes of users and roles.
        self._state = 0
        self._credentials = credentials
        self._open_urls = open_urls
        self._keys = keys
        self._users: Bounded[str, User] = Bounded(_KEPT_BYTES_MAX)
        self._roles: Bounded[str, auth.Grants] = Bounded(_KEPT_BYTES_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self.reading = asyncio.Lock()
        """Held while the body of a change is read, which takes long."""
        self._rendering = asyncio.Lock()
        self.refresh()

    @property
    def state(self) -> View:
        """The committed state, for one look: never across an await."""
        return self._store.view

    def refresh(self) -> None:
        """Users or roles have changed: forget what was known of them."""
        self._state += 1
        self._users.clear()
        self._roles.clear()
        was_enabled = self.enabled
        try:
            self.enabled = auth.is_enabled(self.state)
        except BROKEN as damage:
            self.damaged(damage)
        if self.enabled and not was_enabled and self._open_urls:
            log.warning(
                "users are asked for their passwords, which can be read on their way to %s: "
                "serve https there",
                ", ".join(self._open_urls),
            )
        if self.enabled:
            self._keys.end_watches(self._has_lost_its_right)
        self.on_refresh()

    def _has_lost_its_right(self, watcher: Watcher) -> bool:
        rights = watcher.rights
        if rights is None:  # it began while users were not asked for
            rights = Rights(self, None, watcher.key)
        assert isinstance(rights, Rights)
        return not rights.still_allow(recursive=watcher.recursive)

    async def hash(self, password: str) -> bytes:
        """Return the hash of a new password.

        Raises:
            RouteError: 503, too many are asked for.
        """
        try:
            return await self._credentials.hash(password)
        except Busy:
            raise RouteError(503, _BUSY) from None

    async def administrator(self, caller: Caller, connection: Connection) -> str:
        """Return the name of who may do what only those with the role root may, for the log.

        Args:
            caller: who asks.
            connection: where; a password is not checked for a client that has gone.

        Raises:
            RouteError: 401, it is somebody else; 503, too many passwords are being checked.
        """
        if not self.enabled:
            return "anybody"
        found = self._recognize(caller)
        try:
            if isinstance(found, Basic):
                user = await self._check(found, caller, connection)
            else:
                user = found
        except Busy:
            raise RouteError(503, _BUSY) from None
        if user is None or auth.ROOT not in (user.roles or ()):
            raise RouteError(401, "Insufficient credentials")
        return f"user {user.name!r}"

    def admit(self, head: KeyHead, then: Admitted) -> None:
        """Decide by its head whether a request may go on; tell `then`, now or later.

        What only the parameters tell (`recursive`) is not decided yet.
        """
        try:
            found = self._recognize(head.caller)
            if isinstance(found, Basic):
                task = asyncio.get_running_loop().create_task(self._admit_later(head, found, then))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                then(self._judge(head, found))
        except BROKEN as damage:
            self.damaged(damage)

    def serve(self, request: KeyRequest, admission: Admission | None) -> None:
        """Serve a complete request, now or later, if that is allowed.

        Without a form, what is wrong with a request comes before who asks, as in etcd. A form is
        parsed after that is known.
        """
        connection, method, _, _ = request.head
        parsed = request.parsed
        if parsed is None and not request.form:
            try:
                parsed = parse(method, request.key, request.query, b"")
            except ApiError as refusal:
                self._keys.refuse(connection, method, refusal)
                return
            except TakesLong:
                pass  # it is parsed once its sender is known
        self.readmit(request.head, admission, partial(self._serve, request, parsed))

    def readmit(self, head: KeyHead, admission: Admission | None, then: Admitted) -> None:
        """Decide as `admit`, unless what was decided when the head came still counts."""
        if admission is not None and admission.state == self._state:
            then(admission)
        else:
            self.admit(head, then)

    def guest(self, path: bytes) -> Rights:
        """Return what a guest may do with a key."""
        return Rights(self, None, path)

    def rights(self, admission: Admission, path: bytes) -> Rights:
        """Return what somebody who was let in may do with a key."""
        return Rights(self, admission.user, path)

    async def render(
        self,
        connection: Connection,
        render: Callable[[View, Callable[[int], None]], Iterator[bytes]],
    ) -> bytes:
        """Return what is rendered of users and roles in turns, while others are served.

        `render` gets a function to call with what it keeps in memory, which is bounded likewise.

        Raises:
            RouteError: as `render`; 500, it is too long; 503, there is no memory for it.
        """
        memory = connection.memory
        size_max = min(_LIST_BYTES_MAX, memory.answer_bytes_max)
        pieces: list[bytes] = []
        size = kept = 0

        def keep(more: int) -> None:
            nonlocal kept
            kept += more
            memory.take(more)
            if kept > size_max:
                raise RouteError(500, f"the names take more than {size_max} bytes of memory")

        async with self._rendering:
            try:
                with self._store.long_view() as view:
                    until = monotonic() + _SLICE_S
                    for piece in render(view, keep):
                        pieces.append(piece)
                        size += len(piece)
                        memory.take(len(piece))
                        if size > size_max:
                            message = f"the response is larger than {size_max} bytes"
                            raise RouteError(500, message)
                        if monotonic() > until:
                            await memory.room(SMALL_BYTES)
                            await asyncio.sleep(0)
                            until = monotonic() + _SLICE_S
                        if connection.gone:
                            return b""
                return b"".join(pieces)
            except NoRoom:
                raise RouteError(503, "no memory for the response") from None
            finally:
                memory.give_back(size + kept)

    async def settle(self) -> None:
        """Wait for those whose password is being checked; turn away those who would take long."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_SETTLE_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _admit_later(self, head: KeyHead, given: Basic, then: Admitted) -> None:
        outcome: Admission | ApiError
        try:
            try:
                user = await self._check(given, head.caller, head.connection)
                outcome = self._judge(head, user)
            except (Busy, asyncio.CancelledError):
                outcome = ApiError(RAFT_INTERNAL, _BUSY.encode(), limit=PASSWORDS)
            if not head.connection.gone:
                then(outcome)
        except BROKEN as damage:
            self.damaged(damage)
        except Exception:
            log.exception("a request could not be served")
            head.connection.abort()

    def _judge(self, head: KeyHead, user: User | None) -> Admission | ApiError:
        is_stranger = user is None and head.caller.authorization
        write = head.method not in ("GET", "HEAD")
        # Users may have ceased to be asked for by now.
        if not self.enabled or (
            not is_stranger
            and (head.path is None or Rights(self, user, head.path).may(write=write))
        ):
            return Admission(user, self._state)
        return ApiError(UNAUTHORIZED, DENIED)

    def _serve(
        self, request: KeyRequest, parsed: Parsed | None, outcome: Admission | ApiError
    ) -> None:
        head, key, query, form, _ = request
        connection, method, path, _ = head
        if isinstance(outcome, ApiError):
            self._keys.refuse(connection, method, outcome)
            return
        assert path is not None
        rights = Rights(self, outcome.user, path)
        self._keys.serve(connection, method, key, query, form, parsed=parsed, rights=rights)

    def _recognize(self, caller: Caller) -> User | Basic | None:
        """Return who asks, None where that is nobody, or what has to be checked first."""
        if not caller.authorization:
            return self.user(caller.common_name) if caller.common_name else None
        given = read_basic(caller.authorization)
        if given is None:
            return None
        user = self.user(given.name)
        return user if user and self._credentials.are_known(given, user.secret) else given

    async def _check(self, given: Basic, caller: Caller, connection: Connection) -> User | None:
        """Return the user whose name and password these are, or None.

        Raises:
            Busy: too many are being checked.
        """
        user = self.user(given.name)
        secret = user.secret if user else None
        is_right = await self._credentials.are_right(
            given,
            secret,
            caller.network,
            lambda: connection.gone,
            was_wrong=connection.was_wrong,
        )
        if not is_right:
            connection.was_wrong = True
            return None
        # Meanwhile the user may have got another password, or be there no more.
        user = self.user(given.name)
        return user if user and user.secret == secret else None

    def user(self, name: str) -> User | None:
        """Return a user; one that does not exist is looked for each time, and not kept."""
        user = self._users.kept.get(name)
        if user is None:
            user = auth.find_user(self.state, name)
            if user is not None:
                self._users.keep(name, user, _size(name, user.roles))
        return user

    def grants(self, name: str) -> auth.Grants | None:
        """Return what a role allows, None if there is no such role."""
        grants = self._roles.kept.get(name)
        if grants is None:
            role = auth.find_role(self.state, name)
            if role is not None:
                grants = auth.Grants(role)
                self._roles.keep(name, grants, _size(name, *role.permissions))
        return grants


def _size(name: str, *lists: Sequence[str] | None) -> int:
    """Return what a user or a role takes that consists of these texts."""
    texts = [name, *(text for texts in lists for text in texts or ())]
    return sum(_TEXT_BYTES + 4 * len(text) for text in texts)
