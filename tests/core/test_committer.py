"""kvd/core/committer.py: the order of outcomes, events and syncs, and a disk that fails."""

import asyncio
import errno

import pytest

from kvd.storage.format.event import Event
from kvd.v2.commands import CompareAndSwap, Create, CreateInOrder, Delete, Set, Update
from tests.support.committing import PATIENCE_S, Gate, error, fail_writes, on_a_loop, started, turns
from tests.support.stores import SECOND_NS, SEGMENT, digest, open_store
from tests.support.waiting import until


@on_a_loop
async def test_commands_are_answered_in_order_with_an_index_each(tmp_path):
    async with started(tmp_path / "data") as engine:
        outcomes = await engine.run(Set(b"/a", b"1"), Set(b"/a", b"2"), Delete(b"/a"))
        assert [outcome.change.index for outcome in outcomes] == [2, 3, 4]
        assert outcomes[1].prev.value == b"1"
        assert engine.commits == 1
        assert engine.store.applied.index == 4


@on_a_loop
async def test_no_response_or_event_leaves_before_the_sync_has_returned(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"0"))
        received = engine.watch(b"/a", stream=True)
        gate = Gate(monkeypatch)
        futures = engine.submit(
            Set(b"/a", b"1"),
            CompareAndSwap(b"/a", b"2", b"0", 0),  # refused because of the one before it
            Create(b"/x/y", b""),
            Create(b"/x/y", b""),
        )
        await gate.reached()
        late = engine.submit(Create(b"/a", b""))
        await turns()
        assert not any(future.done() for future in (*futures, *late))
        assert received == []
        assert engine.value(b"/a") == b"0"
        assert engine.store.view.find(b"/x") is None
        assert engine.store.applied.index == 2
        gate.open()
        first, swap, created, again = await asyncio.gather(*futures)
        assert first.change.index == 3
        assert error(swap) == (101, b"[0 != 1]", 3)
        assert created.change.index == 4
        assert error(again) == (105, b"/x/y", 4)
        assert error(await late[0]) == (105, b"/a", 4)
        assert engine.value(b"/a") == b"1"
        await until(lambda: len(received) == 1)


@on_a_loop
async def test_observers_get_what_is_visible_before_the_clients(tmp_path):
    async with started(tmp_path / "data") as engine:
        observed = []

        def observe(events):
            answered = [future.done() for future in futures]
            observed.append(
                ([event.change.key for event, _ in events], engine.value(b"/a"), answered)
            )

        engine.observe = observe
        futures = engine.submit(Set(b"/a", b"1"), Delete(b"/none"), Set(b"/b", b"2"))
        await asyncio.gather(*futures)
        # Those that keep something, once each.
        assert observed == [([b"/a", b"/b"], b"1", [False] * 3)] * 2


@on_a_loop
async def test_what_comes_during_a_sync_is_one_batch(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        gate = Gate(monkeypatch)
        first = engine.submit(Set(b"/a", b""))
        await gate.reached()
        rest = []
        for i in range(50):
            rest += engine.submit(Set(b"/%d" % i, b""))
            await turns(1)
        gate.open()
        await asyncio.gather(*first, *rest)
        assert engine.commits == 2
        assert engine.store.applied.index == 52


@on_a_loop
async def test_responses_are_prepared_while_a_thread_writes(tmp_path, monkeypatch):
    prepared = []
    async with started(tmp_path / "data", render=prepared.append) as engine:
        gate = Gate(monkeypatch)
        futures = engine.submit(Set(b"/a", b"1"))
        await gate.reached()
        assert [len(round_.answers) for round_ in prepared] == [1]
        assert not futures[0].done()
        gate.open()
        await futures[0]


@on_a_loop
async def test_commands_that_keep_coming_are_one_batch(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(*(Set(b"/%d" % i, b"") for i in range(16)))
        before, futures = engine.commits, []
        for count in (1, 2, 3, 5, 5):  # each client sends its next command once it has its response
            futures += engine.submit(*[Set(b"/a", b"")] * count)
            await turns(1)
        await asyncio.gather(*futures)
        assert engine.commits == before + 1


@on_a_loop
async def test_a_batch_does_not_wait_for_commands_that_come_one_by_one(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(*(Set(b"/%d" % i, b"") for i in range(100)))
        before = len(engine.logged)
        for _ in range(8):
            engine.submit(Set(b"/a", b""))
            await turns(1)
        assert len(engine.logged) == before + 1
        assert 1 < engine.logged[-1].count(b"/a") < 8


@on_a_loop
async def test_a_command_does_not_wait_for_others_that_do_not_come(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(*(Set(b"/%d" % i, b"") for i in range(8)))
        engine.submit(Set(b"/a", b""))
        await turns(2)
        assert engine.logged[-1].count(b"/a") == 1


@on_a_loop
async def test_a_batch_that_changes_nothing_asks_nothing_of_the_disk(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        before = engine.store.applied
        for name in ("write_at", "sync_data"):
            fail_writes(monkeypatch, name, errno.EIO)
        outcomes = await engine.run(Delete(b"/a"), Update(b"/b", b""))
        assert [error(outcome) for outcome in outcomes] == [(100, b"/a", 1), (100, b"/b", 1)]
        assert engine.store.applied == before
        monkeypatch.undo()


@on_a_loop
async def test_draining_waits_for_every_answer(tmp_path):
    async with started(tmp_path / "data") as engine:
        futures = engine.submit(*(Set(b"/%d" % i, b"") for i in range(2500)))
        await engine.committer.drain()
        assert all(future.done() for future in futures)
        # A batch takes a thousand records.
        assert engine.commits == 3


@on_a_loop
async def test_long_keys_make_short_batches(tmp_path):
    """Whatever comes of the commands: to look for deep keys that do not exist takes as long."""
    async with started(tmp_path / "data") as engine:
        keys = [b"/%b%d" % (b"k" * 2000, number) for number in range(64)]
        await engine.run(*(Set(key, b"") for key in keys))
        assert engine.commits == 4
        turns_taken = []
        for key in keys:
            engine.committer.submit(Delete(key + b"x"), lambda _: turns_taken.append(turn))
        turn = 0
        while len(turns_taken) < len(keys):
            await turns(1)
            turn += 1
        assert len(set(turns_taken)) >= 4


@pytest.mark.parametrize(
    ("depth", "commands", "commits"),
    [(1000, 16, 4), (60, 200, 2), (3, 1000, 1)],
    ids=["deep", "rather deep", "usual"],
)
@on_a_loop
async def test_deep_keys_make_short_batches(tmp_path, depth, commands, commits):
    """Each component is looked up, and others wait meanwhile."""
    async with started(tmp_path / "data") as engine:
        keys = [b"/%03d" % number + b"/d" * (depth - 1) for number in range(commands)]
        await engine.run(*(Set(key, b"") for key in keys))
        assert engine.commits == commits


@on_a_loop
async def test_after_a_stop_nothing_begins(tmp_path):
    async with started(tmp_path / "data") as engine:
        engine.committer.stop()
        (future,) = engine.submit(Set(b"/a", b""))
        await turns()
        assert not future.done()
        assert engine.value(b"/a") is None


@pytest.mark.parametrize("segment_bytes_max", [SEGMENT, 8 << 20], ids=["64 KiB", "8 MiB"])
@on_a_loop
async def test_a_batch_never_outgrows_a_frame(tmp_path, segment_bytes_max):
    """Whatever is queued at once, and with whatever has expired at the same time."""
    async with started(tmp_path / "data", segment_bytes_max=segment_bytes_max) as engine:
        value = b"v" * (segment_bytes_max // 40)
        outcomes = await engine.run(*(Set(b"/%d" % i, value) for i in range(200)))
        assert [outcome.change.index for outcome in outcomes] == list(range(2, 202))
        names = [b"%03d" % i + b"n" * 3000 for i in range(100)]
        await engine.run(*(Set(b"/d/" + name, b"", ttl_s=1) for name in names))
        engine.clock.time_ns += SECOND_NS
        largest = b"v" * (segment_bytes_max * 9 // 10)
        (outcome,) = await engine.run(Set(b"/large", largest))
        assert outcome.change.index == 402
        assert engine.names(b"/d") == []
        assert engine.value(b"/large") == largest
        too_large = b"v" * segment_bytes_max
        outcomes = await engine.run(Set(b"/a", b"1"), Set(b"/a", too_large), Set(b"/b", b"2"))
        assert error(outcomes[1])[0] == 210
        assert isinstance(outcomes[2], Event)
        assert engine.failures == []


@on_a_loop
async def test_a_full_log_refuses_a_batch_and_takes_its_indexes_back(tmp_path, monkeypatch):
    path = tmp_path / "data"
    async with started(path) as engine:
        await engine.run(Set(b"/a", b"0"))
        received = engine.watch(b"/", recursive=True, stream=True)
        before = engine.store.applied
        commands = (
            Set(b"/a", b"1"),
            CreateInOrder(b"/q", b""),
            CompareAndSwap(b"/a", b"2", b"0", 0),
            Delete(b"/nothing"),
        )
        with monkeypatch.context() as patch:
            fail_writes(patch, "write_at", errno.ENOSPC)
            no_room = (300, b"no space left on device (wal)", 0)
            # The whole batch goes; from then on only what users write, each on its own.
            assert [error(outcome) for outcome in await engine.run(*commands)] == [no_room] * 4
            assert engine.committer.no_room == "no space left on device (wal)"
            *refused, missing = await engine.run(*commands)
            assert [error(outcome) for outcome in refused] == [no_room] * 3
            assert error(missing) == (100, b"/nothing", 2)
            assert error((await engine.run(Delete(b"/a")))[0]) == no_room
            assert engine.store.applied == before
            assert engine.value(b"/a") == b"0"
            assert engine.store.view.find(b"/q") is None
        written, posted, swap, missing = await engine.run(*commands)
        assert engine.committer.no_room == ""
        assert written.change.index == 3
        assert posted.change.key == b"/q/00000000000000000004"
        assert error(swap) == (101, b"[0 != 1]", 4)
        assert error(missing) == (100, b"/nothing", 4)
        await until(lambda: len(received) == 2)
        assert engine.failures == []
        held = digest(engine.store)
    store = open_store(path, rebuild_index=True)
    assert digest(store) == held
    store.close()


@pytest.mark.parametrize("call", ["write_at", "sync_data"])
@on_a_loop
async def test_a_failing_disk_is_fatal_and_the_outcome_unknown(tmp_path, monkeypatch, call):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"0"))
        with monkeypatch.context() as patch:
            fail_writes(patch, call, errno.EIO)
            outcomes = await engine.run(Set(b"/a", b"1"), Delete(b"/nothing"))
        for outcome in outcomes:
            code, cause, index = error(outcome)
            assert (code, index) == (300, 0)
            assert b"unknown" in cause
        (failure,) = engine.failures
        assert failure.errno == errno.EIO
        # It is not asked again, and what is unknown is not shown.
        (future,) = engine.submit(Set(b"/a", b"2"))
        await turns()
        assert not future.done()
        assert engine.value(b"/a") == b"0"
        assert engine.commits == 1


@on_a_loop
async def test_a_bug_ends_the_process(tmp_path):
    async with started(tmp_path / "data") as engine:
        engine.submit("no command")
        await asyncio.wait_for(engine.failed.wait(), PATIENCE_S)
        assert isinstance(engine.failures[0], (AttributeError, KeyError))


@on_a_loop
async def test_a_removed_directory_is_an_event_for_watchers_of_what_was_in_it(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/d/a/b", b""), Set(b"/dd/a", b""), Set(b"/d/_h", b""))
        there = [engine.watch(key) for key in (b"/d", b"/d/a", b"/d/a/b", b"/d/_h")]
        # A plain watch of /d is told of /d itself; of its parent only if recursive.
        elsewhere = [
            engine.watch(key) for key in (b"/d/never", b"/d/a/never", b"/dd", b"/dd/a", b"/")
        ]
        recursive = engine.watch(b"/", recursive=True)
        await engine.run(Delete(b"/d", recursive=True))
        await until(lambda: len(recursive) == 1)
        assert [len(received) for received in there] == [1] * 4
        assert [len(received) for received in elsewhere] == [0] * 5
        assert all(b'"key":"/d","dir":true' in body for received in there for body in received)


@on_a_loop
async def test_so_it_is_for_watches_begun_during_the_sync(tmp_path, monkeypatch):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/d/a", b""), Set(b"/d/gone", b""), Set(b"/keep", b""))
        gate = Gate(monkeypatch)
        early = engine.watch(b"/d/a", stream=True)
        futures = engine.submit(
            Set(b"/d/new/x", b""), Delete(b"/d/gone"), Delete(b"/d", recursive=True)
        )
        await gate.reached()
        existing, made, parent, removed, never = (
            engine.watch(key, stream=True)
            for key in (b"/d/a", b"/d/new/x", b"/d/new", b"/d/gone", b"/d/never")
        )
        assert early == existing == []
        gate.open()
        await asyncio.gather(*futures)
        await until(lambda: len(early) == 1)
        await turns()
        assert [len(received) for received in (early, existing)] == [1, 1]
        # Each saw the whole life of its key, and its end once.
        assert [b'"action":"set"' in body for body in made] == [True, False]
        assert [b'"key":"/d"' in body for body in parent] == [True]
        assert [b'"key":"/d/gone"' in body for body in removed] == [True]
        assert never == []


@on_a_loop
async def test_outcomes_are_counted_by_kind(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b""), Set(b"/a/b", b""), Create(b"/a", b""))
        body = engine.stats.body(0)
        assert b'"setsSuccess":1,"setsFail":1' in body
        assert b'"createSuccess":0,"createFail":1' in body


@on_a_loop
async def test_refusals_that_look_at_large_values_make_short_batches(tmp_path):
    async with started(tmp_path / "data", segment_bytes_max=64 << 20) as engine:
        for number in range(8):
            await engine.run(Set(b"/%d" % number, b"v" * (5 << 20)))
        await until(lambda: not engine.committer.flusher.holds)
        batches = engine.committer.batch_s.cumulative()[-1][1]
        outcomes = await engine.run(*(Create(b"/%d" % number, b"") for number in range(8)))
        assert {error(outcome)[0] for outcome in outcomes} == {105}
        assert engine.committer.batch_s.cumulative()[-1][1] - batches >= 4
        # One value is read once, however often it is looked at.
        loaded = engine.store.state.loaded_bytes
        await engine.run(*(Create(b"/7", b"") for _ in range(100)))
        assert engine.store.state.loaded_bytes == loaded
        # What has been written since is not what was looked at.
        await engine.run(Set(b"/7", b"w" * (5 << 20)))
        await until(lambda: not engine.committer.flusher.holds)
        assert engine.value(b"/7") == b"w" * (5 << 20)
