"""Responses of one connection, written to a transport that may be read slowly."""

import asyncio

import pytest

from kvd.http.peer import Peer
from kvd.http.sending.response_writer import LARGE_BYTES, ResponseWriter
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.http.stage import BUSY, CLOSED, STREAMING
from kvd.limits.memory_budget import MemoryBudget, Piece
from tests.http.test_dribble import Nowhere


class Wire(Nowhere):
    """A transport that keeps what is written; it has no socket to query."""

    def __init__(self):
        super().__init__()
        self.sent = b""

    def write(self, data):
        self.sent += bytes(data)

    def get_write_buffer_size(self):
        return 0

    def get_extra_info(self, name, default=None):
        return self if name == "socket" else default

    def fileno(self):
        raise OSError("there is no socket")


class Writer(ResponseWriter):
    """The sending half alone."""

    def __init__(self, server, wire):
        super().__init__(server)
        self._transport = wire
        self.context = Peer(protocol="https")  # the socket is not looked for
        self.stage = BUSY
        self.keep_alive = True
        self.responses = 0

    def done(self):
        self.responses += 1

    def abort(self):
        self.stage = CLOSED

    def serve_received(self):
        pass

    def connection_header(self):
        return b"" if self.keep_alive else b"Connection: close\r\n"

    def _forget_whole_request(self):
        pass


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def server(loop):
    return HttpServer(Delegate(), Limits(), loop, MemoryBudget(1 << 24))


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def writer(server, wire):
    return Writer(server, wire)


def turns(loop, count=20):
    for _ in range(count):
        loop.run_until_complete(asyncio.sleep(0))


def body_of(wire):
    return wire.sent.partition(b"\r\n\r\n")[2]


def test_a_small_response_is_written_at_once(writer, wire):
    writer.extra_headers = b"Vary: Origin\r\n"
    writer.respond(404, b"X: y\r\n", b"none")
    head, _, body = wire.sent.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 404 Not Found"
    assert lines[-3:] == [b"Vary: Origin", b"X: y", b"Content-Length: 4"]
    assert body == b"none"
    assert writer.responses == 1


def test_a_response_to_a_head_has_a_length_only_where_it_is_short(writer, wire):
    for size, has_length in ((10, True), (10_000, False)):
        wire.sent = b""
        writer.respond(200, b"", b"x" * size, head_only=True)
        assert (b"Content-Length" in wire.sent) == has_length
        assert body_of(wire) == b""


def test_a_large_response_is_sent_in_turns_and_is_not_writable_before(writer, wire, loop):
    body = bytes(range(256)) * 4096
    writer.respond(200, b"", body)
    assert not writer.writable
    assert writer.unsent_bytes == len(body)
    assert (body_of(wire), writer.responses) == (b"", 0)
    turns(loop)
    assert body_of(wire) == body
    assert (writer.writable, writer.responses, writer.unsent_bytes) == (True, 1, 0)


def test_what_is_behind_a_large_piece_keeps_its_place(writer, wire, loop, server):
    large = b"x" * (LARGE_BYTES + 1)
    writer.send_large([Piece(large, server.memory)], None)
    writer.send(b"behind")
    turns(loop)
    assert wire.sent == large + b"behind"


def test_a_client_that_does_not_read_is_sent_no_more_until_it_does(writer, wire, loop, server):
    class Full(Wire):
        def write(self, data):
            super().write(data)
            if writer.flows:
                writer.pause_writing()

    writer._transport = full = Full()
    resumed = []
    body = b"x" * (1 << 20)
    writer.respond_in_pieces(200, b"", [Piece(body, server.memory)])
    turns(loop)
    first = len(body_of(full))
    assert first < len(body)
    assert not writer.ready(lambda: resumed.append(True))
    while not writer.responses:
        writer.resume_writing()
        turns(loop)
    assert body_of(full) == body
    writer.resume_writing()
    turns(loop)
    assert resumed == [True]


@pytest.mark.parametrize("http10", [False, True], ids=["HTTP/1.1", "HTTP/1.0"])
def test_a_stream_ends_by_a_chunk_or_with_the_connection(writer, wire, server, http10):
    writer.http10 = http10
    writer.begin_stream(200, b"")
    assert writer.stage is STREAMING
    assert (b"Transfer-Encoding: chunked" in wire.sent) == (not http10)
    assert writer.keep_alive == (not http10)
    writer.send_event(Piece(b"5\r\nevent\r\n", server.memory), last=False)
    assert writer.responses == 0
    writer.end_stream()
    assert body_of(wire) == b"5\r\nevent\r\n" + (b"" if http10 else b"0\r\n\r\n")
    assert writer.responses == 1


def test_a_stream_to_a_client_that_sends_no_more_is_aborted(writer, loop):
    writer._ended = True
    writer.begin_stream(200, b"")
    turns(loop)
    assert writer.stage is CLOSED


def test_nothing_is_sent_to_a_closed_connection(writer, wire, server):
    writer.stage, writer._transport = CLOSED, None
    writer.begin_stream(200, b"")
    writer.send_large([Piece(b"x" * LARGE_BYTES, server.memory)], writer.done)
    writer.respond(200, b"", b"late")
    assert wire.sent == b""
    assert writer.stage is CLOSED
    assert server.memory.answers == 0


def test_memory_of_large_pieces_is_given_back_when_they_are_sent_or_dropped(writer, loop, server):
    piece = Piece(b"x" * (1 << 20), server.memory)
    writer.send_large([piece], None)
    assert server.memory.answers == 1 << 20
    turns(loop)
    assert server.memory.answers == 0
    writer.send_large([piece], None)
    writer._clear_outbox()
    assert server.memory.answers == 0
