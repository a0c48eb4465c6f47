"""kvd/client/watches.py: no event is missed or told twice, whatever happens to the server."""

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from kvd.client import (
    AsyncClient,
    Client,
    ClusterChanged,
    Event,
    HistoryLost,
    KvdError,
    Snapshot,
    WatchTimeout,
)
from kvd.client.watches import Watching
from kvd.client.wire import Connect, Operation, Receive, Send, Step
from tests.support.server import PATIENCE_S, free_port


@pytest.fixture(params=[(), ("--extras=false",)], ids=["stream", "poll"])
def lasting(request, make_server):
    """A server whose port outlives it, with kvd's streams or with etcd's long polls."""
    listen = f"http://127.0.0.1:{free_port()}"
    return make_server("--event-history-limit=100000", *request.param, listen=listen).start()


class Writer:
    """Writes from a thread of its own, as often as it is let, and notes what is acknowledged."""

    def __init__(self, url: str) -> None:
        self.acknowledged: dict[int, str] = {}
        self._permits = threading.Semaphore(0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write, args=[url])
        self._thread.start()

    def let(self, writes: int) -> None:
        self._permits.release(writes)

    def _write(self, url: str) -> None:
        with Client(url) as client:
            for number in itertools.count():
                self._permits.acquire()
                if self._stopped.is_set():
                    return
                with contextlib.suppress(KvdError):
                    event = client.set(f"/load/k{number % 10}", str(number))
                    self.acknowledged[event.index] = str(number)

    def stop(self) -> None:
        self._stopped.set()
        self.let(1)
        self._thread.join(PATIENCE_S)


@pytest.fixture
def writer(lasting) -> Iterator[Writer]:
    made = Writer(lasting.url)
    yield made
    made.stop()


def test_each_event_is_delivered_once_over_kills(connect, lasting, writer):
    received: list[tuple[int, str]] = []
    with connect(lasting.url).watch("/load", since=1) as watch:
        for _ in range(2):
            # The kill comes amid the writes that are left.
            writer.let(60)
            received += [(event.index, event.node.value) for event in itertools.islice(watch, 30)]
            lasting.kill()
            lasting.start()
        writer.stop()
        last = max(writer.acknowledged)
        while received[-1][0] < last:
            event = next(watch)
            received.append((event.index, event.node.value))
        assert watch.index == received[-1][0]
    indexes = [index for index, _ in received]
    assert indexes == sorted(set(indexes))
    assert writer.acknowledged.items() <= dict(received).items()


def test_without_since_it_begins_when_it_is_first_asked(connect, lasting):
    kvd = connect(lasting.url)
    kvd.set("/d/a", "before")
    with kvd.watch("/d") as watch, Client(lasting.url) as other:
        writer = threading.Thread(
            target=lambda: (lasting.wait_for_watchers(1), other.set("/d/b", "1"))
        )
        writer.start()
        event = next(watch)
        writer.join()
        assert (event.node.key, event.node.value) == ("/d/b", "1")
        # A connection that is lost loses nothing.
        lasting.kill()
        lasting.start()
        kvd.set("/d/c", "2")
        kvd.delete("/d", recursive=True)
        assert [next(watch).action for _ in range(2)] == ["set", "delete"]


def test_a_watch_of_one_key_receives_no_events_of_others(connect, server):
    kvd = connect(server.url)
    first = kvd.set("/one/k", "1")
    kvd.set("/one/other", "2")
    kvd.delete("/one", recursive=True)
    with kvd.watch("/one/k", since=first.index, recursive=False) as watch:
        set_, removed = next(watch), next(watch)
    assert set_.node.value == "1"
    assert removed.removes("/one/k")


def test_what_the_history_has_forgotten_is_an_error_and_no_gap(connect, make_server):
    server = make_server("--event-history-limit=5").start()
    kvd = connect(server.url)
    for n in range(20):
        last = kvd.set("/k", str(n)).index
    with kvd.watch("/k", since=3) as watch, pytest.raises(HistoryLost) as caught:
        next(watch)
    assert (caught.value.wanted, caught.value.first) == (3, last - 4)


def test_another_store_under_the_same_address_is_noticed(connect, lasting, make_server, tmp_path):
    kvd = connect(lasting.url)
    index = kvd.set("/k", "1").index
    with kvd.watch("/k", since=index) as watch:
        next(watch)
        lasting.kill()
        other = make_server(*lasting.flags, data_dir=tmp_path / "other", listen=lasting.listen)
        other.start()
        with pytest.raises(ClusterChanged):
            next(watch)


def test_a_quiet_watch_moves_on(connect, server, monkeypatch):
    monkeypatch.setattr("kvd.client.watches.PROGRESS_S", 0.1)
    kvd = connect(server.url)
    with kvd.watch("/quiet") as watch, Client(server.url) as other:

        def write_elsewhere() -> None:
            other.set("/loud", "1")
            reached = other.set("/loud", "2").index
            while watch.index is None or watch.index < reached:
                finished.wait(0.02)
            other.set("/quiet", "x")

        finished = threading.Event()
        writer = threading.Thread(target=write_elsewhere)
        writer.start()
        assert next(watch).node.value == "x"
        writer.join()


def test_close_ends_waiting_callers(server):
    with Client(server.url) as kvd:
        watch = kvd.watch("/never")
        waiter = threading.Thread(target=lambda: list(watch))
        waiter.start()
        server.wait_for_watchers(1)
        watch.close()
        waiter.join(PATIENCE_S)
        assert not waiter.is_alive()
        assert list(watch) == []


def test_close_ends_a_search_for_a_server():
    with Client(f"http://127.0.0.1:{free_port()}", timeout=3600) as kvd:
        watch = kvd.watch("/never")
        waiter = threading.Thread(target=lambda: list(watch))
        waiter.start()
        watch.close()
        waiter.join(PATIENCE_S)
        assert not waiter.is_alive()


def test_a_watch_waits_for_an_event_as_long_as_it_may_and_loses_none(connect, lasting):
    kvd = connect(lasting.url)
    with kvd.watch("/slow", since=1, timeout=0.05) as watch:
        for number in range(3):
            with pytest.raises(WatchTimeout, match=r"no event in 0\.05 s"):
                next(watch)
            kvd.set("/slow", str(number))
            assert patiently(watch).node.value == str(number)
        lasting.kill()
        with pytest.raises(WatchTimeout):
            next(watch)
        lasting.start()
        kvd.set("/slow", "after")
        assert patiently(watch).node.value == "after"


def patiently(watch) -> Event:
    """Its next event; how long the machine takes for it is not what is tested."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return next(watch)
        except WatchTimeout:
            assert time.monotonic() < deadline


def test_a_mirror_waits_as_long_as_it_may(connect, make_server):
    server = make_server(listen=f"http://127.0.0.1:{free_port()}")
    with connect(f"{server.listen}").follow("/m", timeout=0.05) as follow:
        with pytest.raises(WatchTimeout):
            next(follow)
        server.start()
        assert patiently(follow).nodes == {}
        with pytest.raises(WatchTimeout):
            next(follow)


class Quiet:
    """Takes the steps of a watch of a server that sends no event; time is what it is told."""

    def __init__(self, extras: bytes) -> None:
        self.now = 0.0
        self.watches = 0
        self._extras = b'{"extras":[%s]}' % extras
        self._pending = b""

    def run(self, operation: Operation[Event]) -> None:
        step = operation.send(None)
        while True:
            if isinstance(step, Receive) and not self._pending:
                self.now += step.timeout
                step = operation.throw(TimeoutError())
            else:
                step = operation.send(self._take(step))

    def _take(self, step: Step) -> object:
        if isinstance(step, Connect):
            return SimpleNamespace(is_stale=lambda: False, close=lambda: None)
        if isinstance(step, Send):
            size = b"Content-Length: %d\r\n\r\n%s" % (len(self._extras), self._extras)
            is_watch = b"wait=true" in step.data
            self.watches += is_watch
            rest = b"X-Etcd-Index: 1\r\nTransfer-Encoding: chunked\r\n\r\n" if is_watch else size
            self._pending = b"HTTP/1.1 200 OK\r\n" + rest
        if isinstance(step, Receive):
            received, self._pending = self._pending, b""
            return received
        return None


@pytest.mark.parametrize(("extras", "opened"), [(b'"progress"', 4), (b"", 1)])
def test_a_stream_that_is_silent_is_opened_again_also_if_each_call_waits_for_less(
    monkeypatch, extras, opened
):
    """A long poll has no progress: it may be silent."""
    quiet = Quiet(extras)
    monkeypatch.setattr("kvd.client.watches.monotonic", lambda: quiet.now)
    with Client("http://nowhere", connections=0) as client:
        watching = Watching(client._operations, "/k", None, recursive=True)
        for _ in range(10):
            with pytest.raises(WatchTimeout):
                quiet.run(watching.next(5))
    assert quiet.now == 50
    assert quiet.watches == opened


def test_an_event_that_a_cache_repeats_is_delivered_once(connect):
    indexes = iter([7, 7, 5, 9])

    class Cache(BaseHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith("/v2/keys/"):
                self.send_error(404)
                return
            node = {"key": "/k", "value": "v", "createdIndex": 1, "modifiedIndex": next(indexes)}
            body = json.dumps({"action": "set", "node": node}).encode()
            self.send_response(200)
            self.send_header("X-Etcd-Index", "4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Cache) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with connect(f"http://127.0.0.1:{server.server_port}").watch("/k", since=1) as watch:
            assert [next(watch).index for _ in range(2)] == [7, 9]
        server.shutdown()
        thread.join()


def test_index_0_is_the_first_and_not_the_next(connect, make_server):
    """To a server, `waitIndex=0` is the next event: a later one at each connection."""
    kvd = connect(make_server().start().url)
    first = kvd.set("/k", "1").index
    with kvd.watch("/k", since=0, timeout=PATIENCE_S) as watch:
        assert next(watch).index == first


def test_a_refused_watch_is_an_error(connect, make_server):
    server = make_server().start()
    kvd = connect(server.url)
    kvd.set("/k", "1")
    with kvd.watch("/k", since=-5) as watch, pytest.raises(KvdError):
        next(watch)


def test_a_mirror_is_what_it_follows(connect, make_server):
    listen = f"http://127.0.0.1:{free_port()}"
    server = make_server("--event-history-limit=10", listen=listen).start()
    kvd = connect(server.url)
    mirror: dict[str, str | None] = {}

    def take(received):
        if isinstance(received, Snapshot):
            mirror.clear()
            mirror.update({key: node.value for key, node in received.nodes.items()})
            return
        for key in [key for key in mirror if received.removes(key)]:
            del mirror[key]
        if received.node.value is not None:
            mirror[received.node.key] = received.node.value

    with kvd.follow("/m") as follow:
        first = next(follow)
        assert (first.nodes, first.after_gap) == ({}, False)
        kvd.set("/m/a", "1")
        kvd.set("/m/b", "2")
        kvd.delete("/m/a")
        for _ in range(3):
            take(next(follow))
        assert mirror == {"/m/b": "2"}
        server.kill()
        server.start()
        for n in range(20):
            kvd.set("/m/c", str(n))
        gap = next(follow)
        assert isinstance(gap, Snapshot)
        assert gap.after_gap
        take(gap)
        assert mirror == {"/m/b": "2", "/m/c": "19"}
        kvd.set("/m/c", "20")
        take(next(follow))
        assert mirror["/m/c"] == "20"


def test_a_file_can_be_followed(connect, server):
    kvd = connect(server.url)
    kvd.set("/file", "1")
    with kvd.follow("/file") as follow:
        assert next(follow).nodes["/file"].value == "1"
        kvd.set("/file", "2")
        assert next(follow).node.value == "2"


def test_a_caller_that_stops_waiting_loses_no_event(server):
    async def run() -> list[str | None]:
        seen = []
        async with AsyncClient(server.url) as kvd, kvd.watch("/impatient", since=1) as watch:
            for number in range(5):
                waiter = asyncio.ensure_future(anext(watch))
                await kvd.set("/impatient", str(number))
                # The event has come, and is given up in the same turn.
                while watch.index is None or watch.index < (await kvd.get("/impatient")).index:
                    await asyncio.sleep(0)
                waiter.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    seen.append((await waiter).node.value)
            while len(seen) < 5:
                seen.append((await anext(watch)).node.value)
        return seen

    assert asyncio.run(run()) == ["0", "1", "2", "3", "4"]


def test_a_namespace_goes_with_a_directory_above_it(connect, server):
    kvd = connect(server.url, namespace="/above/it")
    with Client(server.url) as other, kvd.watch("/k") as _, kvd.watch("/", since=1) as watch:
        kvd.set("/k", "1")
        other.delete("/above", recursive=True)
        assert next(watch).node.key == "/k"
        removed = next(watch)
    assert removed.node.key == "/"
    assert removed.removes("/k")


def test_a_mirror_notices_another_store(connect, make_server, tmp_path):
    listen = f"http://127.0.0.1:{free_port()}"
    server = make_server(listen=listen).start()
    kvd = connect(server.url)
    kvd.set("/m/a", "1")
    with kvd.follow("/m") as follow:
        assert set(next(follow).nodes) == {"/m/a"}
        server.kill()
        make_server(data_dir=tmp_path / "other", listen=listen).start()
        second = next(follow)
        assert isinstance(second, Snapshot)
        assert (second.nodes, second.after_gap) == ({}, True)
