"""kvd/replicas/member.py: a store without room, and an engine without, on stubs of both logs."""

import asyncio
import errno
from contextlib import asynccontextmanager

import pytest

from kvd.replicas import member as members
from kvd.replicas.engine import EngineFull, OutcomeUnknown
from kvd.replicas.member import StoreMember
from kvd.storage.errors import LogFull
from kvd.storage.format.event import Event
from kvd.storage.store import Options, Store
from kvd.v2.commands import Set
from kvd.v2.errors import RAFT_INTERNAL
from tests.support.committing import Engine, SetClock, error, on_a_loop, turns
from tests.support.waiting import until


class SharedLog:
    """A log of all replicas that has one outcome for each append."""

    def __init__(self):
        self.appended = []
        self.outcome = None
        self.given_up = 0

    async def append(self, seq, prev_chain, chain, payload):
        if self.outcome is not None:
            raise self.outcome
        self.appended.append(payload)

    async def give_up(self):
        self.given_up += 1


class OwnLog:
    """The log of the store, which may have no room."""

    durable = 0

    def __init__(self):
        self.log_writer = None
        self.room = None
        self.refusals = []

    def make_room(self, size, done):
        if self.room is not None:
            asyncio.get_running_loop().call_soon(done, self.room)
        return self.room is None

    def append(self, batch, done):
        if self.refusals:
            done(self.refusals.pop())
            return False
        return self.log_writer.append(batch, done)


class Notes:
    """Figures that nothing reads."""

    def append_began(self):
        pass

    append_ended = append_began

    def append_answered(self, seq, size):
        pass

    applied = append_answered


class Leader(Engine):
    """A committer whose batches go by a member."""

    def __init__(self, store):
        self.own = OwnLog()
        self.shared = SharedLog()
        self.member = StoreMember(store, self.own, first_records=lambda: (), on_fatal=self._fail)
        super().__init__(store, SetClock(), confirm=self.member.confirm, may_decide=False)
        self.own.log_writer = self._log_writer
        self.member.connect(self.committer, self.shared, Notes(), self.committer.follow)

    def _append(self, batch, done):
        self.member.append(batch, done)
        return False  # nothing is rendered here


@asynccontextmanager
async def leading(path):
    store = Store.open(path, Options(segment_bytes_max=1 << 20))
    engine = Leader(store)
    engine.member.open_gate()
    await turns()
    try:
        yield engine
        assert engine.failures == []
    finally:
        engine.member.stop()
        engine.committer.stop()
        engine.sync.stop()
        store.close()


def full():
    return LogFull(errno.ENOSPC, "no space left on device")


@on_a_loop
async def test_without_room_here_nothing_goes_to_the_engine(tmp_path):
    async with leading(tmp_path) as engine:
        engine.own.room = full()
        [outcome] = await engine.run(Set(b"/a", b"1"))
        assert error(outcome)[:2] == (RAFT_INTERNAL, b"no space left on device (wal)")
        assert engine.shared.appended == []
        assert engine.value(b"/a") is None


@on_a_loop
async def test_room_that_is_made_after_a_stop_is_of_no_use(tmp_path):
    async with leading(tmp_path) as engine:
        ends = []
        engine.own.make_room = lambda _, end: ends.append(end)
        [answer] = engine.submit(Set(b"/a", b"1"))
        await until(lambda: ends)
        await turns()
        engine.member.stop()
        await turns()
        ends[0](None)
        await turns()
        assert engine.shared.appended == []
        assert not answer.done()


@on_a_loop
async def test_what_the_engine_has_is_kept_until_there_is_room_here(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(members, "ROOM_S", 0.001)
        async with leading(tmp_path) as engine:
            engine.own.refusals = [full(), full(), full()]
            [answer] = engine.submit(Set(b"/a", b"1"))
            await until(lambda: engine.shared.given_up)
            assert isinstance(await answer, Event)
            assert len(engine.shared.appended) == engine.shared.given_up == 1
            assert engine.value(b"/a") == b"1"


@pytest.mark.parametrize(
    ("outcome", "cause", "goes_on"),
    [
        (EngineFull("full"), b"etcdserver: no space", True),
        (
            OutcomeUnknown("trimmed"),
            b"etcdserver: request timed out, possibly due to previous leader failure",
            False,
        ),
    ],
    ids=["no room", "unknown"],
)
def test_clients_learn_what_the_engine_did(tmp_path, outcome, cause, goes_on):
    @on_a_loop
    async def run():
        async with leading(tmp_path) as engine:
            engine.shared.outcome = outcome
            [refused] = await engine.run(Set(b"/a", b"1"))
            assert error(refused)[:2] == (RAFT_INTERNAL, cause)
            assert engine.value(b"/a") is None
            engine.shared.outcome = None
            [answer] = engine.submit(Set(b"/b", b"1"))
            if goes_on:
                assert isinstance(await answer, Event)
            else:
                await turns()
                assert not answer.done()  # behind the closed gate

    run()
