"""The backlog of a watch is bounded: a slow watcher reads from history and misses nothing."""

import json
import random
from typing import NamedTuple

import pytest

from kvd.core.watch import hub as hubs
from kvd.v2.commands import Delete, Set, Watch
from tests.support.committing import Listener, on_a_loop, started, turns
from tests.support.waiting import until

BOUND = 4_000


class Listening(Listener):
    """One that can be told large events, and cut."""

    def __init__(self):
        super().__init__()
        self.ended = ""

    @property
    def indexes(self):
        return [json.loads(body)["node"]["modifiedIndex"] for body in self.received]

    def deliver_large(self, event):
        self.received.append(b'{"node":{"modifiedIndex":%d}}' % event.change.index)

    def has_room(self, *_):
        return True

    def close(self):
        self.ended = "closed"

    def end(self):
        self.ended = "ended"


class Opened(NamedTuple):
    watch: Watch
    sink: Listening
    watcher: object


@pytest.fixture(autouse=True)
def bound(monkeypatch):
    monkeypatch.setattr(hubs, "BACKLOG_BYTES_MAX", BOUND)


def opened(engine, key, **options):
    watch, sink = Watch(key, **options), Listening()
    return Opened(watch, sink, engine.hub.watch(watch, sink))


def sets(count, key=b"/k", size=100):
    return [Set(key, b"%d" % number + b"v" * size) for number in range(count)]


async def written(engine, commands):
    """Write; the indexes, and the most that waited meanwhile and was read from history."""
    outcomes = engine.submit(*commands)
    waited = behind = 0
    while not all(outcome.done() for outcome in outcomes):
        await turns(1)
        waited = max(waited, engine.hub.backlog_bytes)
        behind = max(behind, engine.hub.waiting - engine.hub.count)
    return [outcome.result().change.index for outcome in outcomes], waited, behind


def is_for(watch, key):
    """Whether an event of a key is told live."""
    if key == watch.key:
        return True
    below = key.removeprefix(watch.key if watch.key != b"/" else b"")
    return (
        watch.recursive and key.startswith(watch.key) and below[:1] == b"/" and b"/_" not in below
    )


@on_a_loop
async def test_the_backlog_is_bounded_and_every_watcher_receives_all(tmp_path):
    async with started(tmp_path) as engine:
        streams = [opened(engine, b"/k", stream=True) for _ in range(300)]
        polls = [opened(engine, b"/k") for _ in range(300)]
        indexes, most, behind = await written(engine, sets(200))
        assert behind == 300
        await until(lambda: all(len(o.sink.received) == 200 for o in streams))
        assert all(o.sink.indexes == indexes for o in streams)
        assert all(o.sink.indexes == indexes[:1] for o in polls)
        # One entry more, of those who were told that they read from history.
        assert 0 < most <= BOUND + 2 * 8 * 300
        assert engine.hub.backlog_bytes == 0
        assert (engine.hub.count, engine.hub.waiting) == (300, 300)


@on_a_loop
async def test_large_events_count_by_their_values(tmp_path):
    """One megabyte waits at most, of the ten that are written at once."""
    async with started(tmp_path, segment_bytes_max=64 << 20) as engine:
        stream = opened(engine, b"/k", stream=True)
        hubs.BACKLOG_BYTES_MAX = 1 << 20
        large = 100 << 10
        most = 0
        outcomes = engine.submit(*sets(50, size=large))
        while not all(outcome.done() for outcome in outcomes):
            await turns(1)
            most = max(most, engine.hub.backlog_bytes)
        await until(lambda: len(stream.sink.received) == 50)
        assert stream.sink.indexes == [outcome.result().change.index for outcome in outcomes]
        assert large < most <= (1 << 20) + 8


@on_a_loop
async def test_a_single_event_may_be_larger_than_the_bound(tmp_path):
    async with started(tmp_path) as engine:
        stream = opened(engine, b"/k", stream=True)
        await engine.run(*sets(1, size=10 * BOUND))
        assert engine.hub.count == 1, "it has not gone to read history"
        await until(lambda: stream.sink.received)


@on_a_loop
async def test_streams_of_the_same_key_share_one_list(tmp_path):
    """It counts once, not once for each event."""
    async with started(tmp_path) as engine:
        count = BOUND // 8 - 200
        streams = [opened(engine, b"/k", stream=True) for _ in range(count)]
        await engine.run(*sets(4, size=1))
        assert engine.hub.waiting == engine.hub.count == count, "nobody reads history"
        await until(lambda: all(len(o.sink.received) == 4 for o in streams))


@on_a_loop
async def test_a_long_poll_that_falls_behind_receives_its_event_from_history(tmp_path):
    async with started(tmp_path) as engine:
        keys = [b"/k%d" % number for number in range(100)]
        polls = [opened(engine, key) for key in keys]
        late = [opened(engine, key, wait_index=1000) for key in keys]
        indexes, _, behind = await written(engine, (Set(key, b"v" * 100) for key in keys))
        assert behind > 0
        await until(lambda: all(o.sink.received for o in polls))
        assert [poll.sink.indexes for poll in polls] == [[index] for index in indexes]
        assert engine.hub.waiting == engine.hub.count == len(late)
        assert not any(o.sink.received for o in late)


@on_a_loop
async def test_one_that_falls_behind_the_history_is_closed(tmp_path):
    async with started(tmp_path) as engine:
        engine.store.start_term(engine.clock.now_ns(), 10)
        listeners = [opened(engine, b"/k", stream=True).sink for _ in range(600)]
        indexes, _, _ = await written(engine, sets(200))
        await until(lambda: all(sink.ended for sink in listeners))
        for sink in listeners:
            received = sink.indexes
            assert sink.ended == "closed"
            assert received == indexes[: len(received)]
            assert 0 < len(received) < 200
        assert (engine.hub.waiting, engine.hub.backlog_bytes) == (0, 0)


@on_a_loop
async def test_one_that_leaves_while_it_is_behind_is_forgotten(tmp_path):
    async with started(tmp_path) as engine:
        streams = [opened(engine, b"/k", stream=True) for _ in range(600)]
        await engine.run(*sets(100))
        assert engine.hub.waiting > engine.hub.count
        for stream in streams[:300]:
            engine.hub.forget(stream.watcher)
        before = [len(stream.sink.received) for stream in streams[:300]]
        await until(lambda: all(len(o.sink.received) == 100 for o in streams[300:]))
        # What was on its way, which a connection that has gone drops, but nothing from history.
        assert max(before) <= max(len(stream.sink.received) for stream in streams[:300]) < 100
        assert engine.hub.waiting == engine.hub.count == 300


@on_a_loop
async def test_a_stop_ends_those_that_are_behind(tmp_path):
    async with started(tmp_path) as engine:
        streams = [opened(engine, b"/k", stream=True) for _ in range(600)]
        await engine.run(*sets(100))
        engine.hub.end_all()
        assert {stream.sink.ended for stream in streams} == {"ended"}
        assert (engine.hub.waiting, engine.hub.backlog_bytes) == (0, 0)
        await turns()


@on_a_loop
async def test_one_whose_delivery_fails_is_closed_and_the_others_receive_it(tmp_path, caplog):
    class Failing(Listening):
        def deliver(self, body):
            raise ZeroDivisionError("a bug")

    async with started(tmp_path) as engine:
        failing = Failing()
        engine.hub.watch(Watch(b"/k", stream=True), failing)
        others = [opened(engine, b"/o", stream=True) for _ in range(3)]
        await engine.run(*sets(1), *sets(2, key=b"/o"))
        await until(lambda: all(len(o.sink.received) == 2 for o in others))
        assert failing.ended == "closed"
        assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("seed", range(6))
@on_a_loop
async def test_however_far_it_falls_behind_a_stream_receives_what_it_would_live(tmp_path, seed):
    draw = random.Random(seed)
    keys = [b"/a", b"/d/a", b"/d/b", b"/d/_h", b"/d/e/f", b"/_h/a", b"/_h/_i/b"]
    watched = [*keys, b"/", b"/d", b"/_h"]
    async with started(tmp_path) as engine:
        streams: list[Opened] = []
        expected: dict[int, list[int]] = {}
        received_by: list[tuple[int, bytes]] = []

        def registered_at(opened):
            return expected.setdefault(id(opened.sink), [])

        for _ in range(12):
            for _ in range(draw.randrange(40)):
                key = draw.choice(watched)
                stream = opened(engine, key, stream=True, recursive=draw.random() < 0.6)
                registered_at(stream)
                streams.append(stream)
            written = [draw.choice(keys) for _ in range(draw.randrange(1, 40))]
            outcomes = await engine.run(*(Set(key, b"v" * draw.randrange(300)) for key in written))
            for key, outcome in zip(written, outcomes, strict=True):
                received_by.append((outcome.change.index, key))
                for stream in streams:
                    if is_for(stream.watch, key):
                        registered_at(stream).append(outcome.change.index)
            await turns(draw.randrange(3))
        await until(lambda: engine.hub.waiting == engine.hub.count and not engine.hub.backlog_bytes)
        await turns()
        for stream in streams:
            assert stream.sink.indexes == registered_at(stream)
        await engine.run(Delete(b"/a"))
