"""Authentication and authorization of requests, while authentication is on.

While it is off, `enabled` is False and nothing else here is called. The switch is read from the
committed state, as users and roles are; the committer reports their changes.

A request without an Authorization header belongs to the user of its client certificate, where these
count, or else to a guest. With the header it belongs to the user of that name and password; if
these are wrong it is refused, a guest's rights do not apply. A request is admitted by the state
committed when its password has been checked; a watch ends with the right to it. A form is not
received, let alone parsed, before its sender is known.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from kvd.core.watch.watchers import Watcher
from kvd.handlers.accounts import Accounts
from kvd.handlers.keys.key_space import KeySpace
from kvd.handlers.keys.responder import TOO_MANY_PASSWORDS
from kvd.handlers.passwords import Basic, Busy, Credentials, read_basic
from kvd.handlers.rights import DENIED, Rights
from kvd.http.connection import Connection
from kvd.http.peer import Peer
from kvd.storage.index.errors import BROKEN
from kvd.storage.store import Store
from kvd.v2.documents import auth
from kvd.v2.documents.auth_json import User
from kvd.v2.errors import RAFT_INTERNAL, UNAUTHORIZED, ApiError, RouteError
from kvd.v2.form import TakesLong
from kvd.v2.request import Parsed, parse

log = logging.getLogger(__name__)

# How long a stop waits for passwords: guesses at them may fill the queue for a minute, and a stop
# that takes ten seconds is ended without a clean mark.
_SETTLE_S = 2.0
_BUSY = "too many passwords are being checked"


class Caller(NamedTuple):
    """Claimed identity of a client: an Authorization header, a user named by its certificate.

    `network` is the client's; clients of one network share the checks of passwords.
    """

    authorization: str = ""
    common_name: str = ""
    network: str = ""


def caller_of(headers: list[str], peer: Peer) -> Caller:
    """Return the claimed identity; of several Authorization headers the first counts."""
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
    """The user that a request was admitted as, and the generation of accounts that decided it."""

    user: User | None
    generation: int


Admitted = Callable[[Admission | ApiError], None]


class Authorizer:
    """Admits requests or refuses them."""

    def __init__(
        self,
        *,
        store: Store,
        credentials: Credentials,
        keys: KeySpace,
        on_damage: Callable[[BaseException], None],
        open_urls: Sequence[str],
    ) -> None:
        self.accounts = Accounts(store)
        self._observers: list[Callable[[], None]] = []
        self.damaged = on_damage
        """Called on damage to the index; ends the process."""
        self._credentials = credentials
        self._open_urls = open_urls
        self._keys = keys
        self._tasks: set[asyncio.Task[None]] = set()
        self.refresh()

    @property
    def enabled(self) -> bool:
        """Whether authentication is on."""
        return self.accounts.enabled

    def refresh(self) -> None:
        """Discard cached users and roles after a change, and end watches that lost their right."""
        was_enabled = self.enabled
        try:
            self.accounts.refresh()
        except BROKEN as damage:
            self.damaged(damage)
        if self.enabled and not was_enabled and self._open_urls:
            log.warning(
                "auth is enabled but %s is plain HTTP: passwords are sent unencrypted; serve https "
                "there",
                ", ".join(self._open_urls),
            )
        if self.enabled:
            self._keys.end_watches(self._has_lost_its_right)
        for observer in self._observers:
            observer()

    def subscribe(self, observer: Callable[[], None]) -> None:
        """Call an observer after each change of users or roles."""
        self._observers.append(observer)

    def _has_lost_its_right(self, watcher: Watcher) -> bool:
        rights = watcher.rights
        if rights is None:  # it began while authentication was off
            rights = Rights(self.accounts, None, watcher.key)
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
        """Return the name of a caller with the role root, for the log.

        Args:
            caller: the claimed identity.
            connection: of the caller; no password is checked for a client that has gone.

        Raises:
            RouteError: 401, the caller lacks that role; 503, too many passwords are checked.
        """
        if not self.enabled:
            return "anybody"
        user = await self._known(caller, connection)
        if user is None or auth.ROOT not in (user.roles or ()):
            raise RouteError(401, "Insufficient credentials")
        return f"user {user.name!r}"

    async def identify(self, caller: Caller, connection: Connection) -> User | None:
        """Return the user that a caller is; None for a guest, and while authentication is off.

        Raises:
            RouteError: 401, the name or the password is wrong; 503, too many are being checked.
        """
        user = await self._known(caller, connection) if self.enabled else None
        if self.enabled and user is None and caller.authorization:
            raise RouteError(401, "wrong user or password")
        return user

    async def _known(self, caller: Caller, connection: Connection) -> User | None:
        """Return the user that a caller is, None if it is none.

        Raises:
            RouteError: 503, too many passwords are being checked.
        """
        found = self._recognize(caller)
        if not isinstance(found, Basic):
            return found
        try:
            return await self._check(found, caller, connection)
        except Busy:
            raise RouteError(503, _BUSY) from None

    def admit(self, head: KeyHead, then: Admitted) -> None:
        """Decide by its head whether a request is admitted; call `then`, now or later.

        What depends on the parameters (`recursive`) is not decided yet.
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

        Without a form, an invalid request is refused before its sender is authenticated, as in
        etcd. A form is parsed after that.
        """
        connection, method, _, _ = request.head
        parsed = request.parsed
        if parsed is None and not request.form:
            try:
                parsed = parse(method, request.key, request.query, b"")
            except ApiError as refusal:
                self._keys.responder.refuse(connection, method, refusal)
                return
            except TakesLong:
                pass  # parsed once its sender is known
        self.readmit(request.head, admission, partial(self._serve, request, parsed))

    def readmit(self, head: KeyHead, admission: Admission | None, then: Admitted) -> None:
        """Decide as `admit`, unless what was decided when the head came still counts."""
        if admission is not None and admission.generation == self.accounts.generation:
            then(admission)
        else:
            self.admit(head, then)

    def guest(self, path: bytes) -> Rights:
        """Return the rights of a guest to a key."""
        return Rights(self.accounts, None, path)

    def rights(self, admission: Admission, path: bytes) -> Rights:
        """Return the rights of an admitted sender to a key."""
        return Rights(self.accounts, admission.user, path)

    async def settle(self) -> None:
        """Wait for pending password checks; cancel those that would take long."""
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
                outcome = ApiError(RAFT_INTERNAL, _BUSY.encode(), limit=TOO_MANY_PASSWORDS)
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
        # Authentication may have been turned off by now.
        if not self.enabled or (
            not is_stranger
            and (head.path is None or Rights(self.accounts, user, head.path).may(write=write))
        ):
            return Admission(user, self.accounts.generation)
        return ApiError(UNAUTHORIZED, DENIED)

    def _serve(
        self, request: KeyRequest, parsed: Parsed | None, outcome: Admission | ApiError
    ) -> None:
        head, key, query, form, _ = request
        connection, method, path, _ = head
        if isinstance(outcome, ApiError):
            self._keys.responder.refuse(connection, method, outcome)
            return
        assert path is not None
        rights = Rights(self.accounts, outcome.user, path)
        self._keys.serve(connection, method, key, query, form, parsed=parsed, rights=rights)

    def _recognize(self, caller: Caller) -> User | Basic | None:
        """Return the user, None for a guest or an unknown caller, or credentials to check first."""
        if not caller.authorization:
            return self.accounts.user(caller.common_name) if caller.common_name else None
        given = read_basic(caller.authorization)
        if given is None:
            return None
        user = self.accounts.user(given.name)
        return user if user and self._credentials.are_known(given, user.secret) else given

    async def _check(self, given: Basic, caller: Caller, connection: Connection) -> User | None:
        """Return the user whose name and password these are, or None.

        Raises:
            Busy: too many are being checked.
        """
        user = self.accounts.user(given.name)
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
        user = self.accounts.user(given.name)
        return user if user and user.secret == secret else None
