"""Response writer: the responses of one connection, in order, no faster than the client reads.

Small pieces are written to the transport at once. Large ones go through the outbox, in slices, and
so does everything behind them.

Invariants:

- While the client does not read, or anything is in the outbox, `writable` is false: then no further
  request is served.
- Output to a closed connection is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

from kvd.http.peer import Peer, unacknowledged_bytes
from kvd.http.sending.outbox import Outbox
from kvd.http.server import HttpServer
from kvd.http.stage import CLOSING, DISTURBED, READING, STREAMING, Stage
from kvd.limits.memory_budget import Piece
from kvd.limits.turns import UNIT_BYTES_LOG2

LARGE_BYTES = 64 << 10
"""A larger response is counted, and sent in slices."""
# net/http sends no length in the response to a HEAD, unless the body would be short.
_HEAD_SIZED_BYTES_MAX = 2048
_LAST_CHUNK = b"0\r\n\r\n"


def _nothing() -> int:
    return 0


class ResponseWriter:
    """The sending half of a connection; `kvd.http.connection` is made of it.

    It is a base class, not a part, because one more call for each response is a hundredth of all
    that a request costs. What it needs of the other half are the methods that are not implemented.

    Attributes:
        stage: where the connection is in its life (`kvd.http.stage`).
        context: the client.
        http10: the present request is one of HTTP/1.0.
        keep_alive: the connection stays open after the present response; false before the first.
        extra_headers: header lines that each response to the present request carries.
        flows: the client reads what it is sent: the event loop keeps not much for it.
        writable: that, and nothing waits in the outbox.
        file: the socket of a streaming response that may be sent past the transport, else 0.
        pending: returns how much the transport of such a response has still to send.
    """

    __slots__ = (
        "_after_outbox", "_ended", "_on_writable", "_outbox", "_server", "_transport", "context",
        "extra_headers", "file", "flows", "http10", "keep_alive", "pending", "stage", "writable",
    )  # fmt: skip

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._outbox: Outbox | None = None
        self._after_outbox: Callable[[], object] | None = None
        self._on_writable: Callable[[], object] | None = None
        # The client has sent its last byte.
        self._ended = False
        self.stage: Stage = READING
        self.context = Peer()
        self.http10 = False
        self.keep_alive = False
        self.extra_headers = b""
        self.flows = True
        self.writable = True
        self.file = 0
        self.pending: Callable[[], int] = _nothing

    # What the other half does

    def done(self) -> None:
        """Go on with the next request, or close: the response is complete."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the connection at once; drop unsent output."""
        raise NotImplementedError

    def serve_received(self) -> None:
        """Serve what was received, unless something else is due first."""
        raise NotImplementedError

    def _forget_whole_request(self) -> None:
        """Stop counting the request, if it has come whole: it is not kept any more."""
        raise NotImplementedError

    def connection_header(self) -> bytes:
        """Decide whether the connection stays open; return the header line that says so."""
        raise NotImplementedError

    # Whether the client reads

    @property
    def gone(self) -> bool:
        """Whether the connection is closed."""
        return self._transport is None

    def ready(self, resume: Callable[[], object]) -> bool:
        """Return whether the client keeps reading; if not, `resume` is called once it has."""
        if not self.writable:
            self._on_writable = resume
        return self.writable

    @property
    def unsent_bytes(self) -> int:
        """Unread output, without what the kernel holds."""
        return self.kept_bytes + (self._outbox.unsent_bytes if self._outbox is not None else 0)

    @property
    def unread_bytes(self) -> int:
        """Unread output, with what the kernel holds.

        The kernel takes a megabyte at once, which a slow client reads for long.
        """
        held = unacknowledged_bytes(self._transport) if self._transport else 0
        return self.unsent_bytes + held

    @property
    def kept_bytes(self) -> int:
        """Output that the event loop keeps for the client."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    @property
    def outbox_sent_bytes(self) -> int:
        """Bytes that the outbox has sent since the connection was made."""
        return 0 if self._outbox is None else self._outbox.sent_bytes

    @property
    def read_bytes(self) -> int:
        """Bytes of the outbox that the client has read, by the kernel's acknowledgements."""
        if self._outbox is None or self._transport is None:
            return 0
        held = self.kept_bytes + unacknowledged_bytes(self._transport)
        return max(0, self._outbox.sent_bytes - held)

    def pause_writing(self) -> None:
        """Stop serving the client, which does not read."""
        self.flows = self.writable = False
        self.stage = DISTURBED[self.stage]
        # Not the last tick's time: it would cut the client a tick early.
        self._server.sending.stalls(self, self._server.loop.time())

    def resume_writing(self) -> None:
        """Go on serving; deferred, as closing the transport inside this call breaks asyncio."""
        self.flows = True
        self._server.sending.reads(self)
        if self._outbox:
            self._server.sending.soon(self)
        else:
            self.writable = True
            self._server.loop.call_soon(self._resume)

    def _resume(self) -> None:
        self.serve_received()
        callback, self._on_writable = self._on_writable, None
        if callback is not None:
            callback()

    # Whole responses

    def respond(self, status: int, headers: bytes, body: bytes, *, head_only: bool = False) -> None:
        """Send a whole response; `headers` are complete lines. With `head_only`, omit the body."""
        start = self._server.start(status, http10=self.http10)
        self._server.turns.left -= len(body) >> UNIT_BYTES_LOG2
        head = start + self.extra_headers + headers + self.connection_header()
        if not head_only or 0 < len(body) <= _HEAD_SIZED_BYTES_MAX:
            head += b"Content-Length: %d\r\n" % len(body)
        if len(body) > LARGE_BYTES and not head_only:
            self.send(head + b"\r\n")
            self.send_large([Piece(body, self._server.memory)], self.done)
            return
        self.send(head + b"\r\n" if head_only else head + b"\r\n" + body)
        self.done()

    def respond_head(self, status: int, headers: bytes) -> None:
        """Send the response to a HEAD of what is not short, which has no length in net/http."""
        self._begin(status, headers)
        self.done()

    def respond_in_pieces(self, status: int, headers: bytes, pieces: Sequence[Piece]) -> None:
        """Send a whole response of many pieces, no faster than the client reads it.

        The length of values that are escaped as they are sent is not known: they come in chunks.
        """
        chunked = False
        length = sum(len(piece.data) for piece in pieces)
        self._server.turns.left -= length >> UNIT_BYTES_LOG2
        if not any(piece.escapes for piece in pieces):
            headers += b"Content-Length: %d\r\n" % length
        elif self.http10:
            self.keep_alive = False
        else:
            headers += b"Transfer-Encoding: chunked\r\n"
            chunked = True
        self._begin(status, headers)
        self.send_large(pieces, self.done, chunked=chunked, last=True)

    def _begin(self, status: int, headers: bytes) -> None:
        start = self._server.start(status, http10=self.http10)
        head = start + self.extra_headers + headers + self.connection_header() + b"\r\n"
        self.send_head(status, head)

    # Streams

    def begin_stream(self, status: int, headers: bytes) -> None:
        """Send the head of a response that comes in chunks, and may take for ever."""
        if self.http10:
            self.keep_alive = False
        else:
            headers += b"Transfer-Encoding: chunked\r\n"
        if not self.file:
            self._find_file()
        self._begin(status, headers)
        if self.stage < CLOSING:
            self.stage = STREAMING
        if self._ended:
            # It would never be noticed that the client leaves.
            self._server.loop.call_soon(self.abort)

    def _find_file(self) -> None:
        """Note the socket, if what is written to it reaches the client as it is."""
        transport = self._transport
        if transport is not None and self.context.protocol == "http":
            self.file = transport.get_extra_info("socket").fileno()
            self.pending = transport.get_write_buffer_size

    def send_event(self, piece: Piece, *, last: bool) -> None:
        """Send a framed piece of a stream, which others may be sent too; or also its end."""
        then = self.done if last else None
        if len(piece.data) > LARGE_BYTES:
            self.send_large([piece], then)
            return
        self.send(piece.data)
        if last:
            self.done()

    def send_large_event(self, pieces: Sequence[Piece], *, last: bool) -> None:
        """Send an event whose values are large, as `send_event` does.

        It is one chunk, unless its length is not known: what is escaped comes in many.
        """
        then = self.done if last else None
        escapes = any(piece.escapes for piece in pieces)
        if self.http10 or escapes:
            self.send_large(pieces, then, chunked=not self.http10, last=last)
            return
        memory = self._server.memory
        start = Piece(b"%x\r\n" % sum(len(piece.data) for piece in pieces), memory)
        end = Piece(b"\r\n" + (_LAST_CHUNK if last else b""), memory)
        self.send_large([start, *pieces, end], then)

    def end_stream(self) -> None:
        """End a stream without a further piece."""
        if not self.http10:
            self.send(_LAST_CHUNK)
        self.done_when_sent()

    # Pieces

    def send_head(self, status: int, data: bytes) -> None:
        """Send the complete head of a response, and maybe the beginning of its body."""
        self.send(data)

    def send(self, data: bytes) -> None:
        """Send bytes of a response, behind what waits to be sent."""
        if self._outbox:
            self._outbox.add(Piece(data, self._server.memory))
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def send_large(
        self,
        pieces: Iterable[Piece],
        then: Callable[[], object] | None,
        *,
        chunked: bool = False,
        last: bool = False,
    ) -> None:
        """Send pieces in slices, as the client reads them; when all are sent call `then`.

        With `chunked` each slice is framed as a chunk, with `last` the last chunk follows them.
        """
        if self._transport is None:
            return
        self._forget_whole_request()
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = Outbox()
        if not outbox:
            self._server.sending.begins(self)
        for piece in pieces:
            outbox.add(piece, chunked=chunked)
        if chunked and last:
            outbox.add(Piece(_LAST_CHUNK, self._server.memory))
        self._after_outbox = then
        self.writable = False
        if self.flows:
            self._server.sending.soon(self)

    def done_when_sent(self) -> None:
        """Call `done` once the outbox is empty."""
        if self._outbox:
            self._after_outbox = self.done
        else:
            self.done()

    def send_some(self) -> int:
        """Send a visit's slices of the outbox, if the client reads; return how many bytes."""
        outbox, transport = self._outbox, self._transport
        if not outbox or transport is None or transport.is_closing():
            return 0
        before = outbox.sent_bytes
        for data in outbox.slices():
            transport.write(data)
            if not self.flows or transport.is_closing():
                break
        sent = outbox.sent_bytes - before
        if transport.is_closing():
            return sent
        if not outbox:
            self._outbox_is_empty()
        elif self.flows:
            self._server.sending.soon(self)
        return sent

    def _outbox_is_empty(self) -> None:
        self._server.sending.ends(self)
        self.writable = self.flows
        after, self._after_outbox = self._after_outbox, None
        if after is not None:
            after()
        elif self.writable:
            self._resume()

    def _clear_outbox(self) -> None:
        if self._outbox is not None:
            self._outbox.clear()
            self._server.sending.ends(self)
