"""Calls to an etcd of several members: one connection each, the next member when one fails.

A call is tried until it has a definite response, and so may take effect more than once: each
request that goes this way is one that may. Versions that lose writes are refused when a connection
is made.
"""

import asyncio
import logging
import re
import ssl
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kvd.replicas.engine import Access, EngineRefused
from kvd.replicas.etcd.grpc import Channel, Metadata
from kvd.replicas.etcd.grpc_stream import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    FAILED_PRECONDITION,
    INTERNAL,
    INVALID_ARGUMENT,
    PERMISSION_DENIED,
    RESOURCE_EXHAUSTED,
    UNAUTHENTICATED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    UNKNOWN,
    GrpcError,
    Stream,
)
from kvd.replicas.etcd.messages import (
    AUTHENTICATE,
    STATUS,
    AuthenticateRequest,
    Method,
    StatusRequest,
    StatusResponse,
)
from kvd.replicas.etcd.protobuf import decode, encode
from kvd.replicas.etcd.url import EtcdUrl

log = logging.getLogger(__name__)
T = TypeVar("T")

CALL_S = 1.0
"""The deadline of one attempt."""
PAUSE_S = 0.05
PAUSE_MAX_S = 0.5
"""Pauses between rounds over all members: doubled from the first to the second."""

TRANSIENT = (CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE)
LOSES_WRITES = ((3, 5, 0), (3, 5, 2))
"""These and those between may lose acknowledged writes when a member is killed."""
LOSES_EVENTS_BEFORE = (3, 4, 35)
"""Older versions may skip events of a watch at a compaction; the log notices within two seconds."""
WITHOUT_LEADER = ((b"hasleader", b"true"),)
"""Metadata that has a member end a watch when it has lost its leader."""


class NoSpace(Exception):
    """Etcd refuses writes for want of room; `is_unsure` when an earlier attempt had no response."""

    def __init__(self, message: str, *, is_unsure: bool) -> None:
        super().__init__(message)
        self.is_unsure = is_unsure


@dataclass(slots=True)
class _Member:
    host: str
    port: int
    channel: Channel | None = None
    id: int = 0
    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)


class EtcdClient:
    """Calls and streams to the members; `current` is the one that calls go to."""

    def __init__(self, url: EtcdUrl, access: Access | None = None) -> None:
        self._access = access or Access()
        self._tls = _tls_context(self._access) if url.is_tls else None
        self._members = [_Member(host, port) for host, port in url.members]
        self._token = b""
        self._is_silent = False
        self._has_warned = False
        self.current = 0

    async def call(self, method: Method[T], request: object) -> T:
        """Return the response.

        Raises:
            EngineRefused, NoSpace: see there.
            GrpcError: a code that no other attempt would change.
        """
        return (await self.settle(method, request))[0]

    async def settle(self, method: Method[T], request: object) -> tuple[T, bool]:
        """As `call`; and whether an earlier attempt may have taken, or may yet take, effect."""
        content = encode(request)
        failures = 0
        is_unsure = False
        while True:
            member = self.current
            try:
                response = await self.once(method, content, member)
            except GrpcError as error:
                if _is_full(error):
                    raise NoSpace(error.message, is_unsure=is_unsure) from None
                if error.code not in TRANSIENT and not _is_busy(error):
                    raise _lasting(error) from None
                is_unsure |= error.was_sent
                failures += 1
                self.leave(member)
                await self._pause(failures, error)
            else:
                self._hears()
                return response, is_unsure

    async def once(self, method: Method[T], request: bytes, number: int) -> T:
        """One attempt at one member.

        Raises:
            GrpcError: as the member or the connection ended it.
            EngineRefused: the member's version must not be used, or it does not know us.
        """
        for is_last in (False, True):
            channel = await self._channel(number)
            try:
                response = await channel.unary(
                    method.path, request, timeout_s=CALL_S, metadata=self._metadata()
                )
                return decode(method.response, response)
            except GrpcError as error:
                if is_last or not _wants_token(error):
                    raise
                await self._authenticate(channel)
        raise AssertionError

    async def stream(self, method: Method[Any], number: int) -> Stream:
        """Begin a stream at one member; it ends when that member has no leader."""
        channel = await self._channel(number)
        return channel.stream(method.path, metadata=(*self._metadata(), *WITHOUT_LEADER))

    def leave(self, number: int) -> None:
        """Send further calls to the next member, if they go to this one."""
        if self.current == number:
            self.current = self.after(number)

    def after(self, number: int) -> int:
        """The next member."""
        return (number + 1) % len(self._members)

    async def statuses(self) -> list[StatusResponse]:
        """The status of each member that responds in time."""
        found = await asyncio.gather(
            *(self.once(STATUS, b"", number) for number in range(len(self._members))),
            return_exceptions=True,
        )
        statuses = []
        for number, status in enumerate(found):
            if isinstance(status, StatusResponse):
                self._members[number].id = status.header.member_id
                statuses.append(status)
            elif not isinstance(status, GrpcError):
                raise status
        return statuses

    async def go_to_leader(self) -> None:
        """Send further calls to etcd's leader, which saves a hop, if it is known and answers."""
        try:
            status = await self.once(STATUS, b"", self.current)
        except GrpcError:
            return
        if status.leader not in (0, status.header.member_id):
            if not any(member.id == status.leader for member in self._members):
                await self.statuses()
            for number, member in enumerate(self._members):
                if member.id == status.leader:
                    self.current = number

    def close(self) -> None:
        """End all connections."""
        for member in self._members:
            if member.channel is not None:
                member.channel.close()

    async def _channel(self, number: int) -> Channel:
        member = self._members[number]
        async with member.connecting:
            if member.channel is None or not member.channel.is_open:
                channel = await Channel.connect(
                    member.host, member.port, tls=self._tls, timeout_s=CALL_S
                )
                try:
                    await self._greet(channel, member)
                except BaseException:
                    channel.close()
                    raise
                member.channel = channel
        return member.channel

    async def _greet(self, channel: Channel, member: _Member) -> None:
        """Authenticate if need be, and look at the version."""
        if self._access.user and not self._token:
            await self._authenticate(channel)
        try:
            response = await channel.unary(
                STATUS.path, encode(StatusRequest()), timeout_s=CALL_S, metadata=self._metadata()
            )
        except GrpcError as error:
            if not _wants_token(error):
                error.was_sent = False  # the call that waits for this connection
                raise
            await self._authenticate(channel)
            return
        status = decode(STATUS.response, response)
        member.id = status.header.member_id
        self._check_version(status.version, channel.peer)

    def _check_version(self, text: str, peer: str) -> None:
        match = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
        version = tuple(map(int, match.groups())) if match else ()
        if LOSES_WRITES[0] <= version <= LOSES_WRITES[1]:
            raise EngineRefused(
                f"{peer} is etcd {text}: 3.5.0 to 3.5.2 lose writes when killed; upgrade it"
            )
        if version < LOSES_EVENTS_BEFORE and not self._has_warned:
            self._has_warned = True
            log.warning("etcd %s may skip events of a watch: 3.4.35 and newer do not", text)

    async def _authenticate(self, channel: Channel) -> None:
        if not self._access.user:
            raise EngineRefused(f"{channel.peer} wants a user and a password")
        request = encode(AuthenticateRequest(self._access.user, self._access.password))
        try:
            response = await channel.unary(AUTHENTICATE.path, request, timeout_s=CALL_S)
        except GrpcError as error:
            error.was_sent = False
            if error.code == FAILED_PRECONDITION:  # users are not enabled, or not any more
                self._token = b""
                return
            if error.code in TRANSIENT:
                raise
            raise EngineRefused(f"{channel.peer} refuses the user: {error.message}") from None
        self._token = decode(AUTHENTICATE.response, response).token.encode()

    def _metadata(self) -> Metadata:
        return ((b"token", self._token),) if self._token else ()

    async def _pause(self, failures: int, cause: GrpcError) -> None:
        rounds, others = divmod(failures, len(self._members))
        if others:
            return
        if not self._is_silent:
            self._is_silent = True
            log.warning("the consensus engine does not respond, trying again: %s", cause.message)
        await asyncio.sleep(min(PAUSE_MAX_S, PAUSE_S * 2 ** (min(rounds, 10) - 1)))

    def _hears(self) -> None:
        if self._is_silent:
            self._is_silent = False
            log.info("the consensus engine responds again")


def _is_full(error: GrpcError) -> bool:
    return error.code == RESOURCE_EXHAUSTED and "space exceeded" in error.message


def _is_busy(error: GrpcError) -> bool:
    return error.code == RESOURCE_EXHAUSTED and "too many requests" in error.message


def _wants_token(error: GrpcError) -> bool:
    """Whether a new token may help: none was sent, it has ended, or rights have changed."""
    return error.code == UNAUTHENTICATED or (
        error.code == INVALID_ARGUMENT
        and ("auth store is old" in error.message or "user name is empty" in error.message)
    )


def _lasting(error: GrpcError) -> Exception:
    """The exception for an error that another attempt meets again."""
    if error.code == PERMISSION_DENIED:
        return EngineRefused("etcd's user has no right to read and write the prefix")
    if error.code == UNIMPLEMENTED:
        return EngineRefused(f"it does not know a call of etcd v3: {error.message}")
    if error.code == INVALID_ARGUMENT and "too large" in error.message:
        return EngineRefused("etcd takes less than 1.5 MiB a request: see its --max-request-bytes")
    return error


def _tls_context(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca_file or None)
        if access.cert_file:
            context.load_cert_chain(access.cert_file, access.key_file or None)
    except OSError as error:
        names = ", ".join(filter(None, (access.ca_file, access.cert_file, access.key_file)))
        raise EngineRefused(f"the certificates of the engine, {names}: {error}") from None
    context.set_alpn_protocols(["h2"])
    return context
