"""gRPC over HTTP/2 on the library h2: unary calls and two-way streams on one connection.

    request   HEADERS  :method POST, :path /package.Service/Method, te trailers, grpc-timeout 1000m
              DATA     messages, see `grpc_stream`
    response  HEADERS  :status 200, content-type application/grpc
              DATA     messages
              HEADERS  grpc-status (0 is success), grpc-message (percent-encoded); alone on an error

A connection is closed only when it is known to be of no use: the peer says GOAWAY or breaks the
protocol, a call's deadline passes and not one byte has come since the call began, or a ping is not
answered. A call that is late on a connection that lives ends alone: a slow member keeps its watch.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import cast
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from kvd.replicas.etcd.grpc_stream import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    OK,
    STREAM_WINDOW,
    UNAVAILABLE,
    UNKNOWN,
    GrpcError,
    Stream,
)

CONNECTION_WINDOW = 1 << 24
PING_AFTER_S = 10
"""Silence before a ping, with a call in flight. Servers close connections that ping more often."""
LOOK_S = 4
PONG_LOOKS = 2
"""A ping is given up at the second look after it: one alone may follow a pause of this process."""
LAST_STREAM_ID = 1 << 30
"""A connection takes no calls after this one; ids end at 2^31."""

Metadata = Iterable[tuple[bytes, bytes]]


class Channel(asyncio.Protocol):
    """One connection. `is_open` while it takes calls."""

    def __init__(self, authority: str, scheme: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._authority = authority.encode()
        self._scheme = scheme.encode()
        self._http = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )
        self._streams: dict[int, Stream] = {}
        self._transport: asyncio.Transport | None = None
        self._heard_at = self._loop.time()
        """When the last byte came, or the first of the calls in flight began."""
        self._heard = 0
        """How often bytes came."""
        self._looks_since_ping = 0
        self._watch: asyncio.TimerHandle | None = None
        self.is_open = False

    @classmethod
    async def connect(
        cls, host: str, port: int, *, tls: ssl.SSLContext | None = None, timeout_s: float
    ) -> "Channel":
        """Open a connection.

        Raises:
            GrpcError: UNAVAILABLE, with the cause.
        """
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, channel = await loop.create_connection(
                    lambda: cls(authority, "https" if tls else "http"), host, port, ssl=tls
                )
        except TimeoutError:
            text = f"no connection to {authority} in {timeout_s} s"
            raise GrpcError(UNAVAILABLE, text, was_sent=False) from None
        except OSError as error:
            text = f"no connection to {authority}: {error}"
            raise GrpcError(UNAVAILABLE, text, was_sent=False) from None
        return channel

    async def unary(
        self, path: str, request: bytes, *, timeout_s: float, metadata: Metadata = ()
    ) -> bytes:
        """Send one message, return the response's.

        Raises:
            GrpcError: any code; DEADLINE_EXCEEDED after `timeout_s`, when the outcome is unknown.
        """
        heard = self._heard
        stream = self.stream(path, metadata=metadata, timeout_s=timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                stream.send(request, ends=True)
                response = await stream.receive()
                try:
                    await stream.receive()
                except GrpcError as end:
                    if end.code != OK:
                        raise
                return response
        except TimeoutError:
            if self._heard == heard:
                self._fail(UNAVAILABLE, f"not a byte from {self.peer} in {timeout_s} s")
            text = f"no response of {self.peer} in {timeout_s} s"
            raise GrpcError(DEADLINE_EXCEEDED, text) from None
        except GrpcError as error:
            if error.code == OK:
                raise GrpcError(INTERNAL, "a response without a message") from None
            raise
        finally:
            stream.cancel()

    def stream(
        self, path: str, *, metadata: Metadata = (), timeout_s: float | None = None
    ) -> Stream:
        """Begin a call.

        Raises:
            GrpcError: UNAVAILABLE, when the connection takes no call.
        """
        if not self.is_open:
            text = f"the connection to {self.peer} is closed"
            raise GrpcError(UNAVAILABLE, text, was_sent=False)
        headers = [
            *((b":method", b"POST"), (b":scheme", self._scheme), (b":path", path.encode())),
            *((b":authority", self._authority), (b"te", b"trailers")),
            (b"content-type", b"application/grpc"),
            *metadata,
        ]
        if timeout_s is not None:
            headers.append((b"grpc-timeout", b"%dm" % max(1, round(timeout_s * 1000))))
        try:
            number = self._http.get_next_available_stream_id()
            self._http.send_headers(number, headers)
        except h2.exceptions.ProtocolError as error:
            text = f"no more calls to {self.peer}: {error}"
            raise GrpcError(UNAVAILABLE, text, was_sent=False) from None
        if not self._streams:
            self._heard_at = self._loop.time()
        if number >= LAST_STREAM_ID:
            self.is_open = False
        self._streams[number] = stream = Stream(self, number)
        return stream

    @property
    def peer(self) -> str:
        """Host and port."""
        return self._authority.decode()

    def close(self) -> None:
        """End all calls and the connection."""
        self._fail(CANCELLED, f"the connection to {self.peer} was closed here")

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        # That of uvloop is no asyncio.Transport, and does all that one does.
        self._transport = cast(asyncio.Transport, transport)
        self._http.initiate_connection()
        # Set before the line above, library and peer would disagree about this window.
        self._http.update_settings(
            {
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
            }
        )
        self._http.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        self.is_open = True
        self._flush()
        self._watch = self._loop.call_later(LOOK_S, self._look)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._heard_at = self._loop.time()
        if not self._heard and data.startswith(b"HTTP/1."):
            # To the library these would be the start of a frame of 4 MiB, for whose end it waits.
            self._fail(UNAVAILABLE, f"{self.peer} does not speak HTTP/2")
            return
        self._heard += 1
        self._looks_since_ping = 0
        try:
            events = self._http.receive_data(data)
            for event in events:
                self._handle(event)
        except h2.exceptions.ProtocolError as error:
            self._flush()
            self._fail(UNAVAILABLE, f"{self.peer} does not speak HTTP/2: {error}")
        else:
            self._flush()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: D102
        self._fail(UNAVAILABLE, f"the connection to {self.peer} was lost: {error or 'closed'}")

    # Inside

    def _handle(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                stream = self._streams.get(event.stream_id)
                taken = stream.take(event.data) if stream else len(event.data)
                padding = event.flow_controlled_length - len(event.data)
                self.acknowledge(event.stream_id, taken + padding)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                self._take_headers(event.stream_id, dict(event.headers), event)
            case h2.events.StreamEnded():
                self._end(event.stream_id, GrpcError(INTERNAL, "a response without a status"))
            case h2.events.StreamReset():
                text = f"the call was reset by {self.peer} ({event.error_code})"
                self._end(event.stream_id, GrpcError(UNAVAILABLE, text))
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                for number, stream in list(self._streams.items()):
                    self.pump(stream, number)
            case h2.events.ConnectionTerminated():
                # The library takes nothing after this frame, not even what was begun before.
                said = (event.additional_data or b"").decode(errors="replace")
                self._fail(UNAVAILABLE, f"{self.peer} said GOAWAY {event.error_code} {said}")

    def _take_headers(
        self, number: int, headers: dict[bytes, bytes], event: h2.events.Event
    ) -> None:
        status = headers.get(b":status", b"200")
        if b"grpc-status" in headers:
            text = unquote(headers.get(b"grpc-message", b"").decode(errors="replace"))
            code = headers[b"grpc-status"]
            self._end(number, GrpcError(int(code) if code.isdigit() else UNKNOWN, text))
        elif isinstance(event, h2.events.ResponseReceived):
            kind = headers.get(b"content-type", b"")
            if status != b"200" or not kind.startswith(b"application/grpc"):
                text = f"{self.peer} answers with status {status.decode()}: is it an etcd?"
                code_of = UNAVAILABLE if status in (b"429", b"502", b"503", b"504") else UNKNOWN
                self._end(number, GrpcError(code_of, text))

    def _end(self, number: int, why: GrpcError) -> None:
        stream = self._streams.get(number)
        if stream is not None:
            stream.end(why, by_peer=True)

    def pump(self, stream: Stream, number: int) -> None:
        """Send of a stream's pending bytes what flow control allows."""
        pending = stream.pending
        while pending:
            size = min(
                len(pending),
                self._http.local_flow_control_window(number),
                self._http.max_outbound_frame_size,
            )
            if size <= 0:
                break
            self._http.send_data(
                number,
                bytes(pending[:size]),
                end_stream=stream.sends_no_more and size == len(pending),
            )
            del pending[:size]
        self._flush()

    def acknowledge(self, number: int, size: int) -> None:
        """Let the peer send this many bytes more."""
        if size and self._transport is not None:
            self._http.acknowledge_received_data(size, number)
            self._flush()

    def reset(self, number: int) -> None:
        """Tell the peer that a call has ended."""
        try:
            self._http.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.ProtocolError:
            return  # it has ended, or the connection has
        self._flush()

    def forget(self, number: int) -> None:
        """Drop a stream that has ended."""
        self._streams.pop(number, None)
        if not self._streams and not self.is_open:
            self._drop()

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _look(self) -> None:
        """Ping after silence; give up after more of it."""
        silent_s = self._loop.time() - self._heard_at
        if self._streams and silent_s >= PING_AFTER_S:
            if self._looks_since_ping == PONG_LOOKS:
                self._fail(UNAVAILABLE, f"{self.peer} does not answer a ping")
                return
            if self._looks_since_ping == 0:
                self._http.ping(bytes(8))
                self._flush()
            self._looks_since_ping += 1
        self._watch = self._loop.call_later(LOOK_S, self._look)

    def _fail(self, code: int, text: str) -> None:
        self.is_open = False
        for stream in list(self._streams.values()):
            stream.end(GrpcError(code, text))
        self._drop()

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
