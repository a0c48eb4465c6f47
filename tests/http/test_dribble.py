"""Requests that come byte by byte: the cost of a byte is bounded."""

import asyncio
import errno
from time import thread_time

import pytest

from kvd.http.connection import Connection
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget

HEAD = b"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nX: "
CHUNKED = b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"


class Nowhere(asyncio.Transport):
    """Takes what is sent to it."""

    def write(self, data):
        pass

    def is_closing(self):
        return False

    def can_write_eof(self):
        return False

    def set_write_buffer_limits(self, high=None, low=None):
        pass

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def get_extra_info(self, name, default=None):
        return default


class Reset(Nowhere):
    """A transport of asyncio whose client has just reset the connection."""

    def can_write_eof(self):
        return True

    def write_eof(self):
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")


class Counting(Delegate):
    """Counts what it is given."""

    def __init__(self):
        self.heads = self.body_bytes = self.ends = 0

    def start_request(self, connection):
        return self

    def serve_whole(self, connection, request):
        return None

    def headers_received(self, start_line, headers):
        self.heads += 1

    def data_received(self, chunk):
        self.body_bytes += len(chunk)

    def finish(self):
        self.ends += 1


class Dribbling:
    """A connection that gets one byte at a time."""

    def __init__(self):
        self.delegate = Counting()
        self.loop = asyncio.new_event_loop()
        self.server = HttpServer(self.delegate, Limits(), self.loop, MemoryBudget(1 << 28))
        self.connection = Connection(self.server)
        self.connection.connection_made(Nowhere())

    def send(self, data: bytes) -> None:
        self.server.buffer[: len(data)] = data
        self.connection.buffer_updated(len(data))

    def dribble(self, data: bytes) -> None:
        for place in range(len(data)):
            self.send(data[place : place + 1])

    def cost_s(self, data: bytes) -> float:
        """The least CPU time of sending these bytes one by one, in hundreds."""
        costs = []
        for place in range(0, len(data), 100):
            began = thread_time()
            self.dribble(data[place : place + 100])
            costs.append(thread_time() - began)
            self.turn()
        return min(costs)

    def turn(self) -> None:
        """Let the loop go round: a turn takes a bounded number of pieces."""
        for _ in range(2):
            self.loop.run_until_complete(asyncio.sleep(0))


@pytest.fixture
def dribbling():
    dribbling = Dribbling()
    yield dribbling
    dribbling.loop.close()


def test_a_byte_of_a_long_head_costs_what_a_byte_of_a_short_one_does(dribbling):
    dribbling.send(HEAD)
    short = dribbling.cost_s(b"a" * 2000)
    dribbling.send(b"a" * 58_000)
    assert dribbling.cost_s(b"a" * 2000) < 4 * short
    dribbling.dribble(b"\r\n\r\n")
    dribbling.turn()
    assert (dribbling.delegate.heads, dribbling.delegate.ends) == (1, 1)


def test_the_end_of_a_head_is_found_however_it_comes(dribbling):
    for end in (b"\r\n\r\n", b"\r\n\n", b"\n\n"):
        head = HEAD.replace(b"\r\n", b"\n") if end == b"\n\n" else HEAD
        for cut in range(len(end) + 1):
            begun = Dribbling()
            begun.send(head + end[:cut])
            begun.dribble(end[cut:])
            begun.loop.close()
            assert (begun.delegate.heads, begun.delegate.ends) == (1, 1), (end, cut)


@pytest.mark.parametrize(
    ("before", "data"),
    [(b"%x\r\n" % (1 << 20), b"x"), (b"", b"1\r\nx\r\n")],
    ids=["one chunk", "many chunks"],
)
def test_a_byte_of_a_long_body_costs_what_a_byte_of_a_short_one_does(dribbling, before, data):
    dribbling.send(CHUNKED + before)
    first = dribbling.cost_s(data * 2000)
    for _ in range(10):
        dribbling.send(data * 10_000)
        while dribbling.server.memory.requests:
            dribbling.turn()
    assert dribbling.cost_s(data * 2000) < 4 * first
    assert dribbling.delegate.body_bytes == 104_000


def test_a_trailer_that_never_ends_is_given_up_soon(dribbling):
    dribbling.send(CHUNKED + b"0\r\nX: ")
    short = dribbling.cost_s(b"a" * 1000)
    assert dribbling.cost_s(b"a" * 2000) < 4 * short
    dribbling.dribble(b"a" * 2000)
    dribbling.turn()
    assert dribbling.server.rejected["malformed"] == 1


def test_a_client_that_goes_as_its_time_ends_is_no_error_for_the_others(dribbling):
    server = dribbling.server
    late = [Connection(server) for _ in range(3)]
    for connection in late:
        connection.connection_made(Reset())
        dribbling.connection = connection
        dribbling.send(HEAD)
        connection.deadline = -1.0
    server.tick()
    assert server.rejected["timeout"] == 3
