"""Events to many watchers at once: to each of them all of it, in order, however it reads."""

import gc
import json
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from kvd.core.watch.watchers import Watcher, Watchers, WatchSink
from kvd.v2.commands import Watch
from tests.support.certs import Authority, client_context
from tests.support.raw import Raw, request
from tests.support.server import Client, Server
from tests.support.tls import LOOPS, flags

WITHOUT_AIO = (
    "import sys; from kvd.storage import aio; aio.CALLS.clear();"
    "from kvd.__main__ import main; sys.exit(main())"
)
WAYS = {
    "uvloop": ((), LOOPS["uvloop"]),
    "asyncio": ((), LOOPS["asyncio"]),
    "without Linux AIO": ((), ("-c", WITHOUT_AIO)),
    "access log": (("--access-log",), LOOPS["uvloop"]),
}
SIZES = [1, 100, 5_000, 31_000, 33_000, 60_000, 70_000]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, make_server: Callable[..., Server]) -> Server:
    """A server that tells many in one of the ways."""
    given, launch = WAYS[request.param]
    return make_server(*given, launch=launch).start()


def http10(target: str) -> bytes:
    return f"GET {target} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode()


def value(number: int) -> str:
    return f"{number}:" + "v" * SIZES[number % len(SIZES)]


def numbers(bodies: Iterator[bytes]) -> Iterator[int]:
    """The numbers of the events, each of which must be whole."""
    for body in bodies:
        received = json.loads(body)["node"]["value"]
        number = int(received.partition(":")[0])
        assert received == value(number)
        yield number


def lines(raw: Raw) -> Iterator[bytes]:
    while line := raw._file.readline():
        yield line


def test_each_receives_all_in_order_whatever_its_form(way):
    """Streams and long polls in HTTP/1.1 and 1.0, some of which read nothing until the end."""
    client = way.client()
    events = 3 * len(SIZES)
    target = "/v2/keys/k?wait=true"
    with ExitStack() as stack:
        opened = [
            stack.enter_context(Raw(way.port, receive_buffer=4096 if number % 3 else None))
            for number in range(60)
        ]
        for number, raw in enumerate(opened):
            stream = target + "&stream=true"
            forms = [request("GET", stream), request("GET", target), http10(stream), http10(target)]
            raw.send(forms[number % 4])
            assert raw.head().status == 200
        for number in range(events):
            assert client.put("/k", value(number)).status in (200, 201)
        for number, raw in enumerate(opened):
            if number % 4 == 0:
                received = numbers(raw.chunks())
                assert [next(received) for _ in range(events)] == list(range(events))
            elif number % 4 == 1:
                assert list(numbers(raw.chunks())) == [0]
                assert raw.ask("GET", "/version").status == 200
            elif number % 4 == 2:
                received = numbers(lines(raw))
                assert [next(received) for _ in range(events)] == list(range(events))
            else:
                assert list(numbers(lines(raw))) == [0]  # its end is that of the connection


def test_hundreds_receive_all_in_order(fresh_server):
    """So many that two threads send to them; every third reads nothing until the end."""
    client, events = fresh_server.client(), 3 * len(SIZES)
    stream, poll = "/v2/keys/k?wait=true&stream=true", "/v2/keys/k?wait=true"
    with ExitStack() as stack:
        opened = [
            stack.enter_context(Raw(fresh_server.port, receive_buffer=None if n % 3 else 4096))
            for n in range(600)
        ]
        for number, raw in enumerate(opened):
            raw.send(request("GET", stream if number % 2 else poll))
            assert raw.head().status == 200
        for number in range(events):
            assert client.put("/k", value(number)).status in (200, 201)
        for number, raw in enumerate(opened):
            received = numbers(raw.chunks())
            if number % 2:
                assert [next(received) for _ in range(events)] == list(range(events))
            else:
                assert list(received) == [0]
                assert raw.ask("GET", "/version").status == 200


def test_long_polls_that_come_back_miss_nothing(way):
    events, polls = 40, 30
    target = "/v2/keys/k?wait=true&waitIndex={}"
    first = way.client().put("/k", value(0)).index

    def write() -> None:
        client = way.client()
        for number in range(1, events):
            client.put("/k", value(number))

    writer = threading.Thread(target=write)
    with ExitStack() as stack:
        opened = [stack.enter_context(Raw(way.port)) for _ in range(polls)]
        for raw in opened:
            raw.send(request("GET", target.format(first)))
        writer.start()
        for number in range(events):
            for raw in opened:
                assert raw.head().status == 200
                (body,) = raw.chunks()
                event = json.loads(body)["node"]
                assert event["value"] == value(number)
                raw.send(request("GET", target.format(event["modifiedIndex"] + 1)))
        writer.join()


def test_what_is_sent_ahead_of_an_event_is_answered_behind_it(way):
    with ExitStack() as stack:
        opened = [stack.enter_context(Raw(way.port)) for _ in range(40)]
        for raw in opened:
            raw.send(request("GET", "/v2/keys/k?wait=true") + request("GET", "/v2/keys/k"))
            assert raw.head().status == 200
        way.client().put("/k", value(3))
        for raw in opened:
            assert list(numbers(raw.chunks())) == [3]
            assert raw.answer().json["node"]["value"] == value(3)


def test_a_newcomer_gets_nothing_of_those_that_have_left(server):
    """It may be given the number of a socket of theirs at any moment."""
    draw = random.Random(1)
    stop = threading.Event()
    reset = b"\1\0\0\0\0\0\0\0"
    stream = request("GET", "/v2/keys/left?wait=true&stream=true")

    def write() -> None:
        client = server.client()
        while not stop.is_set():
            client.put("/left", "told")

    def opened(asked: bytes) -> socket.socket:
        connected = socket.create_connection(("127.0.0.1", server.port))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connected.sendall(asked)
        return connected

    server.client().put("/other", "mine")
    writer = threading.Thread(target=write)
    watchers = [opened(stream) for _ in range(100)]
    try:
        writer.start()
        for _ in range(60):
            for _ in range(10):
                watchers.pop(draw.randrange(len(watchers))).close()
            newcomers = []
            for _ in range(10):
                raw = Raw(server.port)
                newcomers.append(raw.send(request("GET", "/v2/keys/other")))
            for raw in newcomers:
                with raw:
                    assert raw.answer().json["node"]["value"] == "mine"
                    assert raw.ask("GET", "/v2/keys/other").json["node"]["value"] == "mine"
            watchers += [opened(stream) for _ in range(10)]
    finally:
        stop.set()
        writer.join()
        for connected in watchers:
            connected.close()


def test_many_receive_events_through_tls(make_server, tmp_path):
    authority = Authority(tmp_path / "authority")
    pair = authority.sign("server", "127.0.0.1")
    server = make_server(*flags(pair), listen="https://127.0.0.1:0").start()
    trusting: ssl.SSLContext = client_context(authority.cert)
    client: Client = server.client(tls=trusting)
    target = "/v2/keys/k?wait=true&stream=true"
    watches = [server.open(target, tls=trusting) for _ in range(20)]
    for number in range(len(SIZES)):
        client.put("/k", value(number))
    for watch in watches:
        received = [watch.event()["node"]["value"] for _ in SIZES]
        assert received == [value(number) for number in range(len(SIZES))]


def test_a_stream_that_is_not_read_is_cut_and_no_other(make_server):
    server = make_server("--max-stream-bytes", "100000").start()
    client = server.client()
    with ExitStack() as stack:
        raws = [
            stack.enter_context(Raw(server.port, receive_buffer=4096 if number == 7 else None))
            for number in range(20)
        ]
        for raw in raws:
            raw.send(request("GET", "/v2/keys/k?wait=true&stream=true"))
            assert raw.head().status == 200
        received = [numbers(raw.chunks()) for raw in raws]
        # The kernel takes some megabytes for a client that does not read.
        for number in range(1000):
            client.put("/k", value(4 if number % 2 else 11))
            for place in set(range(20)) - {7}:
                next(received[place])
            if number % 50 == 49 and client.request("GET", "/v2/stats/store").json["watchers"] < 20:
                break
        assert client.request("GET", "/v2/stats/store").json["watchers"] == 19
        client.put("/k", value(0))
        assert [next(received[place]) for place in range(20) if place != 7] == [0] * 19


class Patient(Watcher):
    """A watcher that counts how often it is asked for the index that it waits for."""

    asked = 0

    def __init__(self, index: int) -> None:
        # What it listens with is not looked at here.
        super().__init__(Watch(b"/", True, True, index), cast(WatchSink, None), index)

    @property
    def next_index(self) -> int:  # type: ignore[override]
        Patient.asked += 1
        return self._next_index

    @next_index.setter
    def next_index(self, index: int) -> None:
        self._next_index = index


def test_an_event_looks_at_none_of_those_that_wait_for_a_later_one():
    """Or connections that wait for an index far away would make each write expensive."""
    watchers = Watchers()
    waiting = [Patient(100 + number) for number in range(1000)]
    for watcher in reversed(waiting):
        watchers.register(watcher, 1)
    Patient.asked = 0
    for index in range(1, 100):
        assert watchers.matching(b"/a", index, []) == []
    assert watchers.matching(b"/a", 101, []) == [waiting[:2]]
    for watcher in waiting[3:]:
        watchers.unregister(watcher)
    assert watchers.matching(b"/a", 2000, []) == [waiting[:3]]
    assert Patient.asked == 0
    assert watchers.count == 3


def test_those_that_have_left_are_not_kept():
    watchers = Watchers()
    stays = Patient(10**9)
    watchers.register(stays, 1)
    for _ in range(1000):
        left = Patient(10**9)
        watchers.register(left, 1)
        watchers.unregister(left)
    gc.collect()
    assert sum(isinstance(one, Patient) for one in gc.get_objects()) < 100
