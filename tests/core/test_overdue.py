"""Overdue keys: no command counts them as present, and no reader sees them.

It is there while its expiry is on its way to the disk, after a pause of the process, and while
there is much else that ends: a batch takes but some.
"""

import asyncio
import signal
import time
from contextlib import ExitStack
from random import Random

import pytest

from kvd.storage.format.event import Event
from kvd.storage.format.records import Kind
from kvd.v2.commands import (
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Update,
)
from kvd.v2.errors import ApiError
from tests.support.committing import on_a_loop, started
from tests.support.raw import Raw, request
from tests.support.stores import (
    NOW_NS,
    SECOND_NS,
    live,
    open_store,
    random_command,
    sweep,
    tree,
)
from tests.support.waiting import until

BESIDE_COMMANDS = 300  # so many expirations does a batch take that has commands


def expired(engine):
    """The keys that have expired, in the order of the events."""
    return [e.change.key for e in engine.store.view.events(0) if e.change.kind == Kind.EXPIRE]


@on_a_loop
async def test_a_command_does_not_wait_for_all_that_is_due(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(*(Set(b"/d/%04d" % i, b"", ttl_s=1) for i in range(3000)))
        await engine.run(Set(b"/lease", b"", ttl_s=2))
        engine.store.start_term(NOW_NS, 100_000)
        engine.clock.time_ns += SECOND_NS
        commits = engine.commits
        outcomes = await engine.run(Set(b"/other", b""), Update(b"/lease", b"", 2, refresh=True))
        assert all(isinstance(outcome, Event) for outcome in outcomes)
        assert engine.commits <= commits + 1
        assert len(expired(engine)) == BESIDE_COMMANDS
        await until(lambda: not engine.names(b"/d"))
        assert expired(engine) == [b"/d/%04d" % i for i in range(3000)]


@on_a_loop
async def test_what_is_in_the_way_of_a_command_goes_before_its_turn(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Create(b"/dir", b"", dir=True, ttl_s=3))
        await engine.run(Set(b"/dir/sub/a", b"1"), Set(b"/last", b"1", ttl_s=2))
        await engine.run(*(Set(b"/d/%04d" % i, b"", ttl_s=1) for i in range(2000)))
        engine.store.start_term(NOW_NS, 100_000)
        engine.clock.time_ns += 3 * SECOND_NS
        swap, update, create, made, deleted, order = await engine.run(
            CompareAndSwap(b"/last", b"2", b"1", 0),
            Update(b"/d/1999", b"", ttl_s=1, refresh=True),
            Create(b"/d/1998", b"new"),
            Set(b"/dir/sub/b", b"2"),
            Delete(b"/dir/sub/a"),
            CreateInOrder(b"/d", b"3"),
        )
        assert (swap.code, swap.cause) == (100, b"/last")
        assert (update.code, update.cause) == (100, b"/d/1999")
        assert (deleted.code, deleted.cause) == (100, b"/dir/sub/a")
        assert (create.prev, made.prev, order.prev) == (None, None, None)
        first = expired(engine)
        assert first[BESIDE_COMMANDS:] == [b"/last", b"/d/1999", b"/d/1998", b"/dir"]
        await until(lambda: engine.store.state.flushed().first_due_ns() is None)
        assert sorted(expired(engine)) == sorted(
            [b"/dir", b"/last", *(b"/d/%04d" % i for i in range(2000))]
        )
        assert engine.value(b"/d/1998") == b"new"
        assert engine.names(b"/dir/sub") == [b"b"]


@on_a_loop
@pytest.mark.parametrize("others", [0, 1000])
async def test_a_command_is_judged_by_when_it_came(tmp_path, others):
    """A refresh that came before the end of its key is in time, however long it has waited."""
    async with started(tmp_path / "data") as engine:
        await engine.run(*(Set(b"/d/%04d" % i, b"", ttl_s=1) for i in range(others)))
        await engine.run(Set(b"/a", b"", ttl_s=2), Set(b"/b", b"", ttl_s=2))
        engine.clock.time_ns += 2 * SECOND_NS - 1
        (in_time,) = engine.submit(Update(b"/a", b"", 2, refresh=True))
        engine.clock.time_ns += 1
        late, again = engine.submit(
            Update(b"/b", b"", 2, refresh=True), Update(b"/a", b"", 2, refresh=True)
        )
        engine.clock.time_ns += SECOND_NS
        assert isinstance(await in_time, Event)
        assert (await late).code == 100
        assert isinstance(await again, Event)
        assert engine.value(b"/a") == b""
        await until(lambda: engine.value(b"/b") is None)


@on_a_loop
async def test_a_directory_in_which_all_has_ended_is_empty(tmp_path):
    async with started(tmp_path / "data") as engine:
        await engine.run(Create(b"/full/a/b", b"", ttl_s=1), Set(b"/first/x", b"", ttl_s=1))
        await engine.run(*(Set(b"/full/%05d" % i, b"", ttl_s=2) for i in range(3000)))
        await engine.run(Set(b"/some/z", b""), Set(b"/some/a", b"", ttl_s=2))
        engine.clock.time_ns += 3 * SECOND_NS
        answers = engine.submit(
            Delete(b"/full", dir=True), Delete(b"/some", dir=True), Set(b"/after", b"")
        )
        await answers[2]
        assert not answers[0].done()  # too many to look at; but it holds nobody up
        assert (await answers[1]).code == 108
        full = await asyncio.wait_for(answers[0], 30)
        assert full.code == 108  # /full/a is a directory that has not ended
        assert isinstance((await engine.run(Delete(b"/full/a", dir=True)))[0], Event)
        await engine.run(*(Set(b"/full/%05d" % i, b"", ttl_s=2) for i in range(3000)))
        engine.clock.time_ns += 3 * SECOND_NS
        assert isinstance((await engine.run(Delete(b"/full", dir=True)))[0], Event)


@on_a_loop
@pytest.mark.parametrize("seed", range(6))
async def test_commands_find_what_they_would_if_all_had_expired_first(tmp_path, monkeypatch, seed):
    """Random commands on two stores: one expires all that is due first, one a key a batch."""
    outcomes, trees = [], []
    for most, children in ((1 << 30, 1 << 30), (1, 2)):
        monkeypatch.setattr("kvd.core.batch.composer.EXPIRED_WITH_COMMANDS_MAX", most)
        monkeypatch.setattr("kvd.core.batch.expirations._ENDED_CHILDREN_MAX", children)
        dice = Random(seed)
        found = []
        async with started(tmp_path / str(most)) as engine:
            # Expiry goes by commands alone: the loop's timer would be as fast as the machine.
            engine.committer._expired = lambda: None
            for _ in range(60):
                commands = [_without_indexes(dice) for _ in range(dice.randint(1, 6))]
                for outcome in await engine.run(*commands):
                    found.append(_outcome_of(outcome))
                engine.clock.time_ns += dice.choice((0, 1, 5 * SECOND_NS, 50 * SECOND_NS))
            outcomes.append(found)
            trees.append(
                {
                    path: node[0][0]
                    for path, node in tree(engine.store.view.at(engine.clock.time_ns)).items()
                }
            )
    assert outcomes[0] == outcomes[1]
    assert trees[0] == trees[1]


def _without_indexes(dice):
    """A random command whose outcome does not depend on an index, which expiry moves on."""
    command = random_command(dice)
    if isinstance(command, CreateInOrder):
        return Create(*command)
    if isinstance(command, (CompareAndSwap, CompareAndDelete)):
        return command._replace(prev_index=0)
    return command


def _outcome_of(outcome):
    if isinstance(outcome, ApiError):
        return outcome.code, outcome.cause
    change, prev, _ = outcome
    return change.kind, change.value, change.dir, prev and prev.value


@pytest.mark.parametrize("seed", range(3))
def test_a_view_at_a_time_shows_what_is_left_then(tmp_path, seed):
    store = open_store(tmp_path / "data")
    live(store, Random(seed), 60)
    now_ns = store.applied.time_ns + 20 * SECOND_NS
    seen = tree(store.view.at(now_ns))
    with store.long_view() as view:
        assert tree(view.at(now_ns)) == seen
    while sweep(store, now_ns):
        pass
    assert tree(store.view) == seen
    store.close()


def test_after_a_pause_nothing_is_shown_that_has_ended(make_server):
    """The answers to requests that wait when the process goes on are made before any expiry."""
    server = make_server().start()
    client = server.client()
    client.put("/stays", "1")
    client.put("/d/stays", "1")
    for key in ("/file", "/d/file"):
        client.put(key, "1", ttl=1)
    client.put("/dir", dir="true", ttl=1)
    client.put("/dir/file", "1")
    client.put("/lease", "1", ttl=100)
    for key in ("/dir/file", "/d?recursive=true", "/", "/?recursive=true"):
        for _ in range(3):
            client.request("GET", f"/v2/keys{key}")  # whatever is kept is kept now
    index = client.get("/stays").index
    targets = {
        "/file": b'"cause":"/file"',
        "/file?quorum=true": b'"cause":"/file"',
        "/dir": b'"cause":"/dir"',
        "/dir?recursive=true": b'"cause":"/dir"',
        "/dir/file": b'"cause":"/dir"',
        "/dir/none/at/all": b'"cause":"/dir"',
        "/d": b'"nodes":[{"key":"/d/stays"',
        "/d?recursive=true&sorted=true": b'"nodes":[{"key":"/d/stays"',
        "/?recursive=true&sorted=true": b'"key":"/lease"',
        "/": b'"key":"/stays"',
        "/stays": b'"value":"1"',
        "/lease": b'"ttl":9',
    }
    with ExitStack() as stack:
        asked = {target: stack.enter_context(Raw(server.port)) for target in targets}
        for connection in asked.values():  # accepted before the pause
            connection.ask("GET", "/version")
        server.signal(signal.SIGSTOP)
        time.sleep(1.1)  # time has to pass
        for target, connection in asked.items():
            connection.send(request("GET", f"/v2/keys{target}"))
        server.signal(signal.SIGCONT)
        answers = {target: connection.answer() for target, connection in asked.items()}
    for target, expected in targets.items():
        answer = answers[target]
        assert expected in answer.body, (target, answer.body)
        assert b'"ttl":-' not in answer.body
        assert b'"/file"' not in answer.body or answer.status == 404
        assert b"/d/file" not in answer.body
        assert b'"/dir' not in answer.body or answer.status == 404
        if answer.status == 404:
            assert answer.json["index"] in (index, index + 3)
    server.watch("/file", waitIndex=index + 1).event()
    for key in ("/file", "/d/file", "/dir"):
        event = server.watch(key, waitIndex=index + 1).event()
        assert event["action"] == "expire"
        assert event["prevNode"].get("ttl", 0) >= 0
