"""Connections between replicas: authenticated by the log's secret, then messages both ways.

Both prove that they know the secret, over nonces of both sides; nothing is parsed before:

    dialer    8s "KVDLINK1", 16s nonce
    listener  16s nonce, 32s HMAC-SHA-256(secret, "listener" + both nonces, the dialer's first)
    dialer    32s HMAC-SHA-256(secret, "dialer" + both nonces)

Then messages: u32 BE length, CBOR array whose first item is the name; `hello` first, by both:

    hello      [id, version, reads]        reads: the highest payload version that it understands
    cmd        [epoch, [[rid, command]]]   forwarded to the leader of an epoch, in order
    no         [epoch, rid, seq, refusal]  refused by the state after frame seq
    done       [epoch, rid, seq]           done there, and nothing was changed
    notleader  [epoch, [rid]]              not decided in this epoch, and will not be
    applied    [seq, durable]              by a follower: the last frames here and on its disk
    alive      []                          by a leader, once a second, as `applied` by a follower
    snapshot   [at_least]                  wanted; it must reach this frame
    nosnapshot [reason]                    there is none
    piece      [bytes]                     of it, an empty one at its end

Without TLS the secret authenticates the start of a connection, and not what follows.
"""

import asyncio
import hmac
import secrets
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import cbor2

MAGIC = b"KVDLINK1"
NONCE_BYTES = 16
MAC_BYTES = 32
HANDSHAKE_S = 5.0
HANDSHAKES_MAX = 64
"""Connections at a time that have not proved anything."""
MESSAGE_BYTES_MAX = 80 << 20
"""Above all that a replica forwards at a time; a snapshot goes in pieces."""
UNREAD_BYTES_MAX = 128 << 20
"""What may wait for a peer that does not read; then the link ends."""

_LENGTH = struct.Struct(">I")

MESSAGES: dict[str, tuple[type, ...]] = {
    "hello": (int, str, int),
    "cmd": (int, list),
    "no": (int, bytes, int, list),
    "done": (int, bytes, int),
    "notleader": (int, list),
    "applied": (int, int),
    "alive": (),
    "snapshot": (int,),
    "nosnapshot": (str,),
    "piece": (bytes,),
}


class LinkError(Exception):
    """The link cannot be made or has ended; the text says why."""


class LinkRefused(LinkError):
    """Its machine is there, and nothing listens at that port."""


class Hello(NamedTuple):
    """The first message of each side."""

    id: int
    version: str
    reads: int


class Link:
    """An authenticated connection to another replica, `peer`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.peer = Hello(0, "", 0)

    def send(self, name: str, *fields: object) -> None:
        """Queue a message.

        Raises:
            LinkError: the link has ended, or its peer does not read.
        """
        content = cbor2.dumps([name, *fields])
        transport = self._writer.transport
        _check_length(len(content))
        if transport.get_write_buffer_size() + len(content) > UNREAD_BYTES_MAX:
            self.close()
            raise LinkError("the peer does not read what it is sent")
        if transport.is_closing():
            raise LinkError("the link has ended")
        self._writer.write(_LENGTH.pack(len(content)) + content)

    async def drain(self) -> None:
        """Wait until the peer has read most of what was sent."""
        try:
            await self._writer.drain()
        except OSError as error:
            raise LinkError(f"the link has ended: {error}") from None

    async def receive(self) -> tuple[str, list[Any]]:
        """The name and the fields of the next message.

        Raises:
            LinkError: the link has ended, or the message is none of those above.
        """
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            _check_length(length)
            return _checked(await self._reader.readexactly(length))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            raise LinkError(f"the link has ended: {error}") from None
        except LinkError:
            self.close()
            raise

    def close(self) -> None:
        """End the link at once."""
        self._writer.transport.abort()

    async def greet(self, hello: Hello) -> None:
        """Exchange the first messages."""
        self.send("hello", *hello)
        name, fields = await self.receive()
        if name != "hello":
            raise LinkError(f"the first message is {name!r}, expected 'hello'")
        self.peer = Hello(*fields)


def _check_length(length: int) -> None:
    if length > MESSAGE_BYTES_MAX:
        raise LinkError(f"a message of {length} bytes, at most {MESSAGE_BYTES_MAX}")


def _checked(content: bytes) -> tuple[str, list[Any]]:
    try:
        message = cbor2.loads(content)
    except (cbor2.CBORDecodeError, ValueError) as error:
        raise LinkError(f"a message that is no CBOR: {error}") from None
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise LinkError("a message that is no array with a name")
    name, *fields = message
    kinds = MESSAGES.get(name)
    if kinds is None or [type(field) for field in fields] != list(kinds):
        raise LinkError(f"a message {name[:32]!r} of {len(fields)} fields is not known")
    return name, fields


async def dial(
    host: str,
    port: int,
    secret: bytes,
    hello: Hello,
    *,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = HANDSHAKE_S,
) -> Link:
    """Connect to another replica.

    Raises:
        LinkRefused: nothing listens there.
        LinkError: it cannot be reached, or does not know the secret.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls)
            try:
                await _prove(reader, writer, secret)
                link = Link(reader, writer)
                await link.greet(hello)
            except BaseException:
                writer.transport.abort()
                raise
    except TimeoutError:
        raise LinkError(f"no link to {host}:{port} in {timeout_s} s") from None
    except ConnectionRefusedError as error:
        raise LinkRefused(f"no link to {host}:{port}: {error}") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        raise LinkError(f"no link to {host}:{port}: {error}") from None
    return link


async def _prove(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes) -> None:
    """The dialer's side of the handshake."""
    own = secrets.token_bytes(NONCE_BYTES)
    writer.write(MAGIC + own)
    nonces = own + await reader.readexactly(NONCE_BYTES)
    if not hmac.compare_digest(
        await reader.readexactly(MAC_BYTES), _mac(secret, b"listener", nonces)
    ):
        raise LinkError("the peer does not know the secret of this log")
    writer.write(_mac(secret, b"dialer", nonces))


async def _verify(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, secret: bytes
) -> None:
    """The listener's side of the handshake."""
    if await reader.readexactly(len(MAGIC)) != MAGIC:
        raise LinkError("the peer is no replica of this version")
    nonces = await reader.readexactly(NONCE_BYTES)
    own = secrets.token_bytes(NONCE_BYTES)
    nonces += own
    writer.write(own + _mac(secret, b"listener", nonces))
    if not hmac.compare_digest(
        await reader.readexactly(MAC_BYTES), _mac(secret, b"dialer", nonces)
    ):
        raise LinkError("the peer does not know the secret of this log")


def _mac(secret: bytes, side: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, side + nonces, "sha256")


class Listener:
    """Accepts links; `serve` is called with each, which ends when it returns."""

    def __init__(
        self, secret: bytes, hello: Hello, serve: Callable[[Link], Awaitable[None]]
    ) -> None:
        self._secret = secret
        self._hello = hello
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._handshakes = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen; port 0 lets the system choose `port`."""
        self._server = await asyncio.start_server(self._accept, host, port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more, and end all links."""
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.transport.abort()
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._handshakes >= HANDSHAKES_MAX:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            await self._serve(await self._greeted(reader, writer))
        except (LinkError, TimeoutError, OSError, asyncio.IncompleteReadError):
            return  # the dialer has the reason, or has none to be given
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _greeted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Link:
        self._handshakes += 1
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await _verify(reader, writer, self._secret)
                link = Link(reader, writer)
                await link.greet(self._hello)
                return link
        finally:
            self._handshakes -= 1
