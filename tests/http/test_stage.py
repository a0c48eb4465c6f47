"""The stages of a connection: each that is permitted to follow another does, and no other."""

import asyncio
import contextlib
import socket

import pytest
from tornado import httputil

from kvd.http.connection import Connection
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.http.stage import ANSWERING, DISTURBED, PERMITTED, Stage
from kvd.limits.memory_budget import MemoryBudget
from tests.http.test_dribble import Nowhere

NOW = b"GET /v2/keys/now HTTP/1.1\r\nHost: h\r\n\r\n"
LATER = NOW.replace(b"now", b"later")
BUSY = NOW.replace(b"now", b"busy")
STREAM = NOW.replace(b"now", b"stream")
LONG = b"PUT /v2/keys/long HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
EARLY = LONG.replace(b"long", b"early").replace(b"Transfer-Encoding: chunked", b"Content-Length: 9")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Wire(Nowhere):
    """A transport whose socket leads nowhere."""

    def __init__(self, wire):
        super().__init__()
        self._wire = wire

    def get_extra_info(self, name, default=None):
        return self._wire if name == "socket" else default

    def get_write_buffer_size(self):
        return 0

    def close(self):
        pass

    def abort(self):
        pass


class Noting(Connection):
    """A connection that notes from which stage it goes to which."""

    __slots__ = ("_stage", "steps")

    def __init__(self, server: HttpServer) -> None:
        self.steps: list[tuple[Stage, Stage]] = []
        super().__init__(server)

    @property
    def stage(self):
        return self._stage

    @stage.setter
    def stage(self, stage):
        before = getattr(self, "_stage", stage)
        if stage is not before:
            self.steps.append((before, stage))
        self._stage = stage


class Serving(Delegate):
    """Serves by the target: at once, later, as a stream, or the long way."""

    def serve_whole(self, connection, request):
        if request == NOW:
            return ANSWER
        if request == LATER:
            connection.stage = ANSWERING
            return b""
        if request in (BUSY, STREAM):
            connection.begin()
            if request == STREAM:
                connection.begin_stream(200, b"")
            return b""
        return None

    def short_way(self, block):
        return False

    def start_request(self, connection):
        return Message(connection)


class Message(httputil.HTTPMessageDelegate):
    """A request of the long way; its response comes at its end, but for `/early` and `/later`."""

    def __init__(self, connection):
        self.connection = connection

    def headers_received(self, start_line, headers):
        self.path = start_line.path.removeprefix("/v2/keys")
        if self.path == "/early":
            self.connection.respond(200, b"", b"")
        if self.path == "/wait":
            self.connection.wait()

    def finish(self):
        if self.path != "/stay":
            self.connection.respond(200, b"", b"")


class Client:
    """One connection, and what is done to it."""

    def __init__(self, server, wire):
        self.server = server
        self.wire = wire
        self.connection = Noting(server)
        self.connection.connection_made(Wire(wire))

    def send(self, data):
        self.server.buffer[: len(data)] = data
        self.connection.buffer_updated(len(data))
        return self

    def turn(self):
        for _ in range(3):
            self.server.loop.run_until_complete(asyncio.sleep(0))
        return self


def answered(client):
    client.send(NOW)


def a_part_of_a_request_and_the_rest(client):
    client.send(NOW).send(NOW[:9]).send(NOW[9:])


def pipelined(client):
    client.send(NOW + LATER + NOW).connection.respond(200, b"", b"")
    client.send(BUSY + NOW).connection.respond(200, b"", b"")


def replied(client):
    assert client.send(LATER).connection.reply(ANSWER)
    assert client.send(LATER).connection.reply(ANSWER)


def responded(client):
    client.send(LATER).connection.respond(200, b"", b"")


def disturbed_before_the_reply(client):
    client.send(NOW).send(LATER).send(NOW)
    assert not client.connection.reply(ANSWER)
    client.connection.respond(200, b"", b"")


def slow_to_read(client):
    client.send(NOW).connection.pause_writing()
    client.connection.resume_writing()
    client.turn().send(LATER).connection.pause_writing()
    client.connection.resume_writing()


def the_long_way(client):
    client.send(LONG + END).send(LONG).send(END)


def answered_before_its_end(client):
    client.send(EARLY).send(b"123456789")


def a_body_that_waits(client):
    client.send(LONG.replace(b"long", b"wait"))
    client.connection.proceed(client.connection._message)
    client.send(END)


def streamed(client):
    client.send(NOW).send(STREAM).send(NOW).connection.end_stream()
    client.send(STREAM).connection.eof_received()
    client.connection.connection_lost(None)


def a_stream_that_is_cut(client):
    client.send(STREAM).connection.abort()
    client.connection.end_stream()
    client.connection.connection_lost(None)


def queued(client):
    client.server.turns.left = 0
    client.send(NOW * 3).turn()


def queued_for_too_long(client):
    client.server.turns.left = 0
    client.send(NOW).connection.expire()
    client.turn()


def lost_while_queued(client):
    client.server.turns.left = 0
    client.send(NOW).connection.connection_lost(None)
    client.turn()


def malformed(client):
    client.send(b"?\r\n\r\n").send(NOW)
    client.connection.expire()
    client.connection.connection_lost(None)


def half_closed(client):
    client.send(NOW).connection.eof_received()


def half_closed_while_answered(client):
    client.send(NOW).send(LATER).connection.eof_received()
    client.connection.respond(200, b"", b"")


def lost(client):
    client.connection.connection_lost(None)


def lost_at_rest(client):
    client.send(NOW).connection.connection_lost(None)


def lost_before_the_reply(client):
    client.send(LATER).connection.connection_lost(None)
    assert not client.connection.reply(ANSWER)
    client.connection.respond(200, b"", b"")


def lost_while_busy(client):
    client.send(BUSY).connection.connection_lost(None)
    client.connection.respond(200, b"", b"")


def given_up(client):
    client.send(LONG.replace(b"long", b"wait"))
    client.connection.give_up()
    client.connection.done()


def stopped(client):
    other = Client(client.server, client.wire).send(LATER)
    third = Client(client.server, client.wire).send(BUSY)
    client.send(NOW).server.stop()
    for each in (client, other, third):
        each.connection.stop()
        each.connection.done()


SCENARIOS = [
    answered, a_part_of_a_request_and_the_rest, pipelined, replied, responded,
    disturbed_before_the_reply, slow_to_read, the_long_way, answered_before_its_end,
    a_body_that_waits, streamed, a_stream_that_is_cut, queued, queued_for_too_long,
    lost_while_queued, malformed, half_closed, half_closed_while_answered, lost, lost_at_rest,
    lost_before_the_reply, lost_while_busy, given_up, stopped,
]  # fmt: skip


def steps(scenario) -> set[tuple[Stage, Stage]]:
    """The steps from stage to stage that a scenario takes, its header block known before."""
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop), socket.socket() as wire:
        server = HttpServer(Serving(), Limits(), loop, MemoryBudget(1 << 28))
        Client(server, wire).send(NOW)
        client = Client(server, wire)
        connections = [client.connection]
        scenario(client)
        client.turn()
        connections += [c for c in server.connections if c is not client.connection]
        return {step for connection in connections for step in connection.steps}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_step_is_taken_that_is_not_permitted(scenario):
    assert {(a, b) for a, b in steps(scenario) if b not in PERMITTED[a]} == set()


def test_each_step_that_is_permitted_is_taken_somewhere():
    taken = set().union(*(steps(scenario) for scenario in SCENARIOS))
    assert {(a.name, b.name) for a in PERMITTED for b in PERMITTED[a] if (a, b) not in taken} == (
        set()
    )


def test_what_is_disturbed_stays_so():
    for stage in Stage:
        assert DISTURBED[DISTURBED[stage]] is DISTURBED[stage]
        assert DISTURBED[stage] is stage or DISTURBED[stage] in PERMITTED[stage]


def test_nothing_follows_the_end():
    assert PERMITTED[Stage.CLOSED] == frozenset()
    assert all(Stage.CLOSED in PERMITTED[stage] for stage in Stage if stage is not Stage.CLOSED)
