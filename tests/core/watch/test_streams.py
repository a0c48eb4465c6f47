"""Streams: chunks, order, the pace of a replay, and how they end."""

import http.client
import json
import threading
import time
from contextlib import ExitStack

import pytest

from tests.support.raw import Raw, request
from tests.support.server import Server
from tests.support.waiting import wait_until
from tests.support.watching import index_of, indexes, watchers


@pytest.mark.parametrize("history", [False, True])
def test_each_event_is_one_chunk(server, client, at, history):
    with Raw(server.port) as raw:
        start = client.put(at, 0).index + 1
        if history:
            client.put(at, 1)
        raw.send(request("GET", f"/v2/keys{at}?wait=true&waitIndex={start}"))
        assert raw.head().status == 200
        if not history:
            client.put(at, 1)
        (chunk,) = raw.chunks()
        assert chunk.endswith(b"}\n")
        assert json.loads(chunk)["node"]["value"] == "1"
        raw.send(request("GET", f"/v2/keys{at}?wait=true&stream=true&waitIndex={start}"))
        assert raw.head().status == 200
        for i in range(2, 10):
            client.put(at, i)
        stream = raw.chunks()
        assert [json.loads(next(stream))["node"]["value"] for _ in range(9)] == list("123456789")


def test_a_stream_goes_on_from_history_to_live_events(server, client, at):
    start = index_of(client) + 1
    for i in range(50):
        client.put(f"{at}/{i % 7}", i)
    watch = server.watch(at, recursive="true", stream="true", waitIndex=start)
    for i in range(50, 100):
        client.put(f"{at}/{i % 7}", i)
    assert [watch.event()["node"]["value"] for _ in range(100)] == [str(i) for i in range(100)]


def test_streams_have_neither_gaps_nor_duplicates_while_others_write(server, at):
    writers, writes = 4, 100
    client = server.client()
    start = index_of(client) + 1
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            own = server.client()
            for i in range(writes):
                assert own.put(f"{at}/{writer}", i).status in (200, 201)
        except BaseException as error:  # noqa: BLE001 -- told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=write, args=[i]) for i in range(writers)]
    for thread in threads:
        thread.start()
    # They begin at any time, from the first event or from now.
    options = {"recursive": "true", "stream": "true"}
    replays, lives = [], []
    while any(thread.is_alive() for thread in threads) and len(replays) < 40:
        replays.append(server.watch(at, waitIndex=start, **options))
        lives.append(server.watch(at, **options))
    for thread in threads:
        thread.join()
    assert failures == []
    last = index_of(client)
    assert last == start + writers * writes - 1
    client.put(f"{at}/end", "")
    for watch in replays:
        assert indexes(watch, last + 1) == list(range(start, last + 2))
    for watch in lives:
        assert indexes(watch, last + 1) == list(range(watch.head.index + 1, last + 2))


@pytest.fixture
def heavy(make_server) -> Server:
    """A server whose history does not fit the buffers of a connection."""
    server = make_server("--event-history-limit", "60").start()
    client = server.client()
    for i in range(60):
        client.put("/heavy", f"{i:02}" * (100 << 10))
    return server


def test_a_replay_goes_no_faster_than_its_client_reads(heavy):
    client = heavy.client()
    with Raw(heavy.port, receive_buffer=4096) as slow:
        slow.send(request("GET", "/v2/keys/heavy?wait=true&stream=true&waitIndex=2"))
        assert slow.head().status == 200
        # Meanwhile others are served: also one that reads the same history.
        watch = heavy.watch("/heavy", stream="true", waitIndex=2)
        assert indexes(watch, 61) == list(range(2, 62))
        client.put("/end", "")
        stream = slow.chunks()
        received = [json.loads(next(stream))["node"] for _ in range(60)]
        assert [node["modifiedIndex"] for node in received] == list(range(2, 62))
        assert [node["value"][:2] for node in received] == [f"{i:02}" for i in range(60)]


def test_a_replay_that_history_has_left_behind_is_cut(heavy):
    client = heavy.client()
    with Raw(heavy.port, receive_buffer=4096) as slow:
        slow.send(request("GET", "/v2/keys/heavy?wait=true&stream=true&waitIndex=2"))
        assert slow.head().status == 200
        for i in range(60):
            client.put("/light", i)
        received = []
        with pytest.raises((AssertionError, ConnectionError, ValueError)):
            received.extend(json.loads(chunk)["node"]["modifiedIndex"] for chunk in slow.chunks())
    # (A list is extended item by item: what came before the cut is there.)
    assert received == list(range(2, 2 + len(received)))
    assert 0 < len(received) < 60


def test_a_replay_may_be_left_at_any_time(heavy):
    client = heavy.client()
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(heavy.port, receive_buffer=4096)) for _ in range(6)]
        for raw in slow:
            raw.send(request("GET", "/v2/keys/heavy?wait=true&stream=true&waitIndex=2"))
            assert raw.head().status == 200
        for raw, way in zip(slow, ("close", "reset") * 3, strict=True):
            getattr(raw, way)()
            client.put("/heavy", 1)
    wait_until(lambda: watchers(client) == 0)


def test_a_stream_receives_its_own_end_once(server, client, at):
    client.put(f"{at}/d/a", 1)
    streams = [
        server.watch(f"{at}/d", stream="true", recursive="true"),
        server.watch(f"{at}/d", stream="true"),
        server.watch(f"{at}/d/a", stream="true"),
        server.watch(at, stream="true", recursive="true"),
    ]
    deleted = client.delete(f"{at}/d", recursive="true").index
    created = client.put(f"{at}/d", 2).index
    client.put(f"{at}/d", 3)
    for watch in (*streams[:2], streams[3]):
        assert indexes(watch, created + 1) == [deleted, created, created + 1]
    client.delete(f"{at}/d")
    last = client.put(f"{at}/d/a", 4).index
    assert indexes(streams[2], last) == [deleted, last]


def test_a_stop_ends_all_watches_properly(make_server):
    server = make_server().start()
    client = server.client()
    client.put("/a", 1)
    watches = [
        server.watch("/a"),
        server.watch("/a", stream="true"),
        server.watch("/", recursive="true", waitIndex=100),
        server.watch("/a", stream="true", waitIndex=2),
    ]
    assert watches[3].event()["node"]["value"] == "1"
    started = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - started < 5
    for watch in watches:
        assert watch.head.status == 200
        assert watch.body() == b""  # and no IncompleteRead: the end is a proper one


def test_pending_events_are_delivered_before_a_stop(make_server):
    server = make_server().start()
    client = server.client()
    watches = [server.watch("/a") for _ in range(600)]
    client.put("/a", 1)
    server.terminate()
    for watch in watches:
        assert json.loads(watch.body())["node"]["value"] == "1"


def test_a_killed_server_ends_watches_by_a_broken_connection(make_server):
    server = make_server().start()
    watch = server.watch("/a")
    server.kill()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        watch.body()
