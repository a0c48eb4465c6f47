"""core/replicated/leading.py: batches of a log that several members share, on a stub of it."""

import asyncio
from contextlib import asynccontextmanager

from kvd.core.replicated.aborted import Aborted
from kvd.core.replicated.leading import BATCH_BYTES_MAX, WAIT_S
from kvd.storage.format.event import Event
from kvd.storage.format.payload import decode_payload, decode_with_rids
from kvd.storage.store import Options, Store
from kvd.v2.commands import Create, Delete, Set, Transaction
from kvd.v2.documents.decision import Reply
from kvd.v2.errors import KEY_EXISTS, KEY_NOT_FOUND, RAFT_INTERNAL, ApiError, RouteError
from tests.support.committing import (
    PATIENCE_S,
    Engine,
    SetClock,
    error,
    on_a_loop,
    put,
    received,
    refuse,
    turns,
)
from tests.support.stores import SECOND_NS

RID = b"r" * 16
TIMEOUT = b"etcdserver: request timed out, possibly due to previous leader failure"


class Leader(Engine):
    """A member that leads: its appends and confirmations wait for what the test says of them."""

    def __init__(self, store, clock):
        self.appends = []
        self.confirms = []
        super().__init__(store, clock, confirm=self.confirms.append)

    def _append(self, batch, done):
        self.appends.append((batch, done))
        return False

    async def begun(self):
        """Wait until a batch is in its append or its confirmation."""
        await turns()
        assert len(self.appends) + len(self.confirms) == 1

    async def take(self):
        """Let the append under way succeed, and wait for the end of its batch."""
        await self.begun()
        batch, done = self.appends.pop()
        super()._append(batch, done)
        await self.rest()
        return decode_payload(batch.payload)

    async def aborted(self, refusal=None):
        await self.begun()
        if refusal is None:
            self.committer.close_gate()
        _, done = self.appends.pop()
        done(Aborted(refusal))
        await turns()

    async def confirmed(self, outcome=None):
        await self.begun()
        if outcome is not None:
            self.committer.close_gate()
        self.confirms.pop()(outcome)
        await turns()

    async def rest(self):
        while self.committer.syncing_s or self.sync.waiting:
            await asyncio.sleep(0.001)
        await turns()

    def transact(self, *commands):
        return self._queued(self.committer.transact, Transaction(b"", (), commands))


@asynccontextmanager
async def leading(path):
    store = Store.open(path, Options(segment_bytes_max=8 << 20))
    engine = Leader(store, SetClock())
    await turns()  # the batch that every start begins with is over
    try:
        yield engine
        assert engine.failures == []
    finally:
        engine.committer.stop()
        engine.sync.stop()
        store.close()


def done(answers):
    return [answer.done() for answer in answers]


@on_a_loop
async def test_nothing_is_answered_or_visible_before_the_shared_log_has_it(tmp_path):
    async with leading(tmp_path) as engine:
        events = engine.watch(b"/", recursive=True, stream=True)
        answers = engine.submit(Set(b"/a", b"1"), Create(b"/a", b"2"))
        await engine.begun()
        assert not any(done(answers))
        assert not events
        assert engine.value(b"/a") is None
        await engine.take()
        set_, create = [await answer for answer in answers]
        assert isinstance(set_, Event)
        assert create.code == KEY_EXISTS
        assert engine.value(b"/a") == b"1"
        assert events


@on_a_loop
async def test_a_refusal_without_a_change_waits_for_the_confirmation(tmp_path):
    async with leading(tmp_path) as engine:
        answers = engine.submit(Delete(b"/none")) + engine.submit_documents(refuse)
        await engine.begun()
        assert not any(done(answers))
        await engine.confirmed()
        assert error(await answers[0])[0] == KEY_NOT_FOUND
        assert received(await answers[1]) == (409, "no")


@on_a_loop
async def test_a_refusal_of_a_deposed_leader_is_decided_again_elsewhere(tmp_path):
    async with leading(tmp_path) as engine:
        answers = [*engine.submit(Delete(b"/a")), engine.transact(Delete(b"/none"))]
        answers += engine.submit_documents(refuse)
        await engine.confirmed(Aborted())
        assert not any(done(answers))
        commands, documents = engine.committer.take_held()
        assert [command for command, _, _ in commands] == [
            Delete(b"/a"),
            Transaction(b"", (), (Delete(b"/none"),)),
        ]
        assert [decide for decide, _ in documents] == [refuse]


@on_a_loop
async def test_an_empty_batch_asks_for_nothing(tmp_path):
    async with leading(tmp_path) as engine:
        engine.committer.open_gate()
        await turns()
        assert not engine.confirms
        assert not engine.appends


@on_a_loop
async def test_what_was_not_logged_goes_back_in_its_order_and_changes_nothing(tmp_path):
    async with leading(tmp_path) as engine:
        before = engine.store.applied
        held = []
        engine.committer.on_held = lambda: held.append(engine.committer.waiting)
        answers = engine.submit(Set(b"/a", b"1"), Delete(b"/none"), Set(b"/b", b"2"))
        answers += [engine.transact(Set(b"/t", b"1"), Set(b"/u", b"1"))]
        forwarded = asyncio.get_running_loop().create_future()
        engine.committer.forward(Set(b"/f", b"3"), forwarded.set_result, RID)
        answers += [forwarded, *engine.submit_documents(put("al"))]
        await engine.begun()
        answers += engine.submit(Set(b"/late", b""))
        await engine.aborted()
        assert held[-1] == 7
        assert not any(done(answers))
        assert engine.store.applied == before
        commands, documents = engine.committer.take_held()
        keys = [command[0] for command, _, _ in commands]
        assert keys == [b"/a", b"/none", b"/b", b"", b"/f", b"/late"]

        for command, respond, _ in commands:
            engine.committer.submit(command, respond)
        for decide, respond in documents:
            engine.committer.submit_document(decide, respond)
        engine.committer.open_gate()  # it leads again
        payload = await engine.take()
        assert len(payload.records) == 7
        outcomes = [await answer for answer in answers]
        assert error(outcomes[1])[0] == KEY_NOT_FOUND
        assert [type(outcome) for outcome in outcomes] == [
            *(Event, ApiError, Event, list, Event, Reply, Event)
        ]


@on_a_loop
async def test_what_has_no_place_in_a_batch_stays_behind_what_goes_back(tmp_path):
    async with leading(tmp_path) as engine:
        value = b"v" * 20_000
        keys = [b"/%d" % n for n in range(20)]
        engine.submit(*(Set(key, value) for key in keys))
        await engine.begun()
        batch, _ = engine.appends[0]
        assert 0 < batch.records < 20
        await engine.aborted()
        commands, _ = engine.committer.take_held()
        assert [command.key for command, _, _ in commands] == keys


@on_a_loop
async def test_an_engine_without_room_refuses_the_batch_and_the_next_may_go_on(tmp_path):
    async with leading(tmp_path) as engine:
        answers = engine.submit(Set(b"/a", b"1"), Delete(b"/none"))
        await engine.aborted(ApiError(RAFT_INTERNAL, b"etcdserver: no space"))
        outcomes = [error(await answer) for answer in answers]
        assert outcomes == [(RAFT_INTERNAL, b"etcdserver: no space", 0)] * 2
        again = engine.submit(Set(b"/a", b"2"))
        await engine.take()
        assert isinstance(await again[0], Event)


@on_a_loop
async def test_batches_are_small_and_a_larger_command_has_its_own(tmp_path):
    async with leading(tmp_path) as engine:
        engine.submit(
            *(Set(b"/%d" % n, b"v" * 50_000) for n in range(6)), Set(b"/z", b"v" * 400_000)
        )
        sizes = []
        while engine.committer.waiting or engine.appends:
            sizes.append([len(record.value) for record in (await engine.take()).records])
        assert sizes == [[50_000] * 5, [50_000], [400_000]]
        transacted = engine.transact(Set(b"/x", b"v" * 200_000), Set(b"/y", b"v" * 200_000))
        document = engine.submit_documents(put("al", b"v" * 400_000))
        while engine.committer.waiting or engine.appends:
            await engine.take()
        assert len(await transacted) == 2
        assert received(await document[0]) == (200, b"")
        assert BATCH_BYTES_MAX == 256 << 10


@on_a_loop
async def test_records_of_forwarded_commands_have_their_rids(tmp_path):
    async with leading(tmp_path) as engine:
        forwarded = asyncio.get_running_loop().create_future()
        engine.submit(Set(b"/own", b""))
        engine.committer.forward(Set(b"/f", b""), forwarded.set_result, RID)
        await engine.begun()
        assert decode_with_rids(engine.appends[0][0].payload)[1] == [None, RID]
        await engine.take()
        assert isinstance(await forwarded, Event)


def wait(engine, seconds):
    engine.clock.time_ns += int(seconds * 1e9)
    engine.committer.leading.tick()


@on_a_loop
async def test_a_client_waits_seven_seconds_for_an_append_and_the_batch_goes_on(tmp_path, caplog):
    async with leading(tmp_path) as engine:
        engine.committer.leading.tick()
        early = engine.submit(Set(b"/a", b"1"), Delete(b"/none"))
        early += [engine.transact(Set(b"/t", b"")), *engine.submit_documents(put("al"))]
        await engine.begun()
        engine.committer.leading.tick()
        wait(engine, WAIT_S)
        assert not any(done(early))
        late = engine.submit(Set(b"/b", b"2"))
        wait(engine, 0.001)
        outcomes = [await asyncio.wait_for(answer, PATIENCE_S) for answer in early]
        assert [error(outcome) for outcome in outcomes[:3]] == [(RAFT_INTERNAL, TIMEOUT, 0)] * 3
        assert received(outcomes[3]) == (500, "Internal Server Error")
        assert engine.value(b"/a") is None

        await engine.take()
        assert engine.value(b"/a") == b"1"
        assert engine.content("al") == b"{}"
        await engine.take()
        assert isinstance(await late[0], Event)
        # Those of a second outcome for what has got a timeout would follow.
        assert [record.msg[:5] for record in caplog.records] == ["slow:"]


@on_a_loop
async def test_what_has_timed_out_does_not_go_back(tmp_path):
    async with leading(tmp_path) as engine:
        early = engine.submit(Set(b"/a", b"1")) + engine.submit_documents(put("al"))
        await engine.begun()
        engine.committer.leading.tick()
        wait(engine, WAIT_S + 1)
        assert all(done(early))
        await engine.aborted()
        assert engine.committer.take_held() == ([], [])


@on_a_loop
async def test_what_is_queued_times_out_too_and_is_never_decided(tmp_path):
    async with leading(tmp_path) as engine:
        engine.committer.close_gate()
        await turns()
        answers = engine.submit(Set(b"/a", b"1")) + engine.submit_documents(put("al"))
        engine.committer.leading.tick()
        wait(engine, WAIT_S + 1)
        assert error(await answers[0]) == (RAFT_INTERNAL, b"etcdserver: request timed out", 0)
        assert isinstance(await answers[1], RouteError)
        engine.committer.open_gate()
        await turns()
        assert not engine.appends


@on_a_loop
async def test_without_room_in_the_engine_writes_are_refused_and_removals_go_on(tmp_path):
    async with leading(tmp_path) as engine:
        answers = engine.submit(Set(b"/a", b"1"), Set(b"/b", b"1"))
        await engine.take()
        engine.committer.leading.refuse_writes("etcdserver: no space")
        assert engine.committer.no_room == "etcdserver: no space"
        answers = engine.submit(Set(b"/c", b"1"), Delete(b"/a"))
        answers += [engine.transact(Set(b"/t", b"")), *engine.submit_documents(put("al"))]
        payload = await engine.take()
        assert len(payload.records) == 1
        outcomes = [await answer for answer in answers]
        assert error(outcomes[0])[:2] == (RAFT_INTERNAL, b"etcdserver: no space")
        assert error(outcomes[2])[:2] == (RAFT_INTERNAL, b"etcdserver: no space")
        assert received(outcomes[3]) == (500, "etcdserver: no space")
        engine.committer.leading.refuse_writes("")
        answers = engine.submit(Set(b"/c", b"1"))
        await engine.take()
        assert isinstance(await answers[0], Event)


@on_a_loop
async def test_an_idle_leader_logs_no_heartbeats(tmp_path):
    async with leading(tmp_path) as engine:
        engine.submit(Set(b"/a", b"1"))
        await engine.take()
        end = engine.store.wal.position
        for _ in range(3):
            engine.clock.time_ns += SECOND_NS
            engine.committer.tick()
            await engine.rest()
        assert engine.store.wal.position == end
