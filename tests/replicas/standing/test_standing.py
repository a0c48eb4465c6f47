"""The standing of a replica: what its parts note, and what routes and health read of it."""

import asyncio
from types import SimpleNamespace

import pytest

from kvd.core.standing import Follower, Leader, Replica, Role, Traffic
from kvd.replicas.engine import NO_LIMIT, Candidate, Lead, Leadership, Room
from kvd.replicas.standing.standing import ReplicaStanding
from kvd.replicas.upkeep.report import Report
from kvd.replicas.upkeep.upkeep import Seen
from tests.support.memory_engine import Faults, MemoryEngine, MemoryLog
from tests.support.simulated_loop import run

REPORT = Report("n", "http://p:1", ("http://c:1",), "following", 5, 5, "1.0", 1, 0)


class Time:
    """Seconds that pass by assignment."""

    def __init__(self):
        self.s = 100.0

    def __call__(self):
        return self.s

    def ns(self):
        return int(self.s * 1e9)


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def standing(time):
    return ReplicaStanding(1, now=time, clock_ns=time.ns)


def led_by(replica: int, epoch: int) -> Leadership:
    return Leadership(epoch, Candidate(replica, "n", "http://p:1", 0), Lead(epoch, 7))


def test_it_joins_first_and_knows_no_leader(standing):
    assert (standing.role, standing.leader, standing.leader_changes) == (Role.JOINING, None, 0)
    assert (standing.received, standing.sent, standing.behind_frames) == (Traffic(), Traffic(), 0)


@pytest.mark.parametrize("role", list(Role))
def test_the_words_of_the_states_are_those_of_the_replica(standing, role):
    standing.enter(str(role))
    assert standing.role is role


def test_it_follows_once_it_has_read_up_to_the_leader(standing):
    standing.led_by(Leadership(3))
    assert standing.role is Role.FOLLOWING


def test_durations_have_a_timer_of_their_own(time):
    timer = Time()
    standing = ReplicaStanding(1, now=time, clock_ns=time.ns, timer=timer)
    standing.append_began()
    timer.s += 0.0005
    assert standing.engine.append_wait_s == pytest.approx(0.0005)
    standing.append_answered(1, 100)
    assert standing.engine.append_s.total == pytest.approx(0.0005)


def test_a_leader_counts_once_and_leads_since_it_was_seen(standing, time):
    standing.led_by(led_by(2, epoch=10))
    time.s += 5
    standing.led_by(led_by(2, epoch=10))
    assert standing.leader == Leader(2, 100_000_000_000)
    standing.led_by(Leadership(11))
    assert standing.leader is None
    standing.led_by(led_by(2, epoch=12))  # the same replica, elected again
    assert standing.leader == Leader(2, 105_000_000_000)
    assert standing.leader_changes == 2


def test_a_follower_counts_what_it_receives_and_its_rates(standing, time):
    standing.enter("following")
    for seq in range(1, 12):
        standing.applied(seq, 100)
        time.s += 0.1
    # Eleven frames in the second between the first and the last.
    assert standing.received == Traffic(11, pytest.approx(11), pytest.approx(1100))
    time.s += 2
    assert standing.received == Traffic(11)
    assert standing.sent == Traffic()


def test_one_frame_has_no_rate(standing):
    standing.enter("following")
    standing.applied(1, 100)
    assert standing.received == Traffic(1)


def append(standing: ReplicaStanding, time: Time, seq: int, *, wait_s: float = 0.25):
    standing.append_began()
    time.s += wait_s
    standing.append_answered(seq, 100)
    standing.applied(seq, 100)
    standing.append_ended()


def test_a_leader_counts_what_it_sends_and_not_what_it_applies(standing, time):
    standing.enter("leading")
    append(standing, time, 1)
    append(standing, time, 2)
    assert standing.sent.frames == 2
    assert standing.received == Traffic()
    assert standing.engine.append_s.total == 0.5


def test_followers_have_the_time_from_the_end_of_the_append(standing, time):
    standing.enter("leading")
    standing.follower_applied(2, 0)  # where its link begins: no response to an append
    append(standing, time, 1)
    time.s += 0.5
    standing.follower_applied(2, 1)
    append(standing, time, 2)
    time.s += 0.25
    standing.follower_applied(2, 2)
    standing.follower_applied(3, 7)  # of an earlier leader: no time is known
    first, second = standing.followers()
    assert first.member_id == 2
    assert first.latency == pytest.approx((0.25, 0.375, 0.125, 0.25, 0.5))
    assert (first.successes, first.failures) == (3, 0)
    assert second == Follower(3, None, 1, 0)


def test_another_leader_s_followers_are_forgotten(standing, time):
    standing.led_by(led_by(1, epoch=10))
    standing.enter("leading")
    standing.follower_applied(2, 1)
    standing.led_by(led_by(2, epoch=11))
    assert list(standing.followers()) == []


def test_a_wait_for_the_engine_lasts_until_the_batch_has_ended(standing, time):
    standing.enter("leading")
    assert standing.engine.append_wait_s == 0
    standing.append_began()
    time.s += 8
    assert standing.engine.append_wait_s == 8
    standing.append_answered(1, 100)
    time.s += 4  # the own disk: not the engine's
    assert standing.engine.append_wait_s == 8
    standing.append_ended()
    assert standing.engine.append_wait_s == 0


def test_the_room_is_that_of_the_engine_s_file(standing):
    assert (standing.engine.used_bytes, standing.engine.quota_bytes) == (0, 0)
    standing.upkeep = SimpleNamespace(reports={}, room=Room(5, 18, 2048), refusal="full")
    assert (standing.engine.used_bytes, standing.engine.quota_bytes) == (18, 2048)
    assert standing.engine.refusal == "full"
    standing.upkeep = SimpleNamespace(reports={}, room=Room(5, 18, NO_LIMIT), refusal="")
    assert (standing.engine.used_bytes, standing.engine.quota_bytes) == (18, 0)


def test_a_detached_replica_says_why(standing):
    standing.detached("the engine's log is gone")
    assert (standing.role, standing.problem) == (Role.DETACHED, "the engine's log is gone")


def test_the_replicas_are_those_that_have_reported(standing, time):
    assert standing.replicas() == ()
    reports = {2: Seen(REPORT, 99.0), 1: Seen(REPORT, float("-inf"))}
    standing.upkeep = SimpleNamespace(reports=reports, room=None, refusal="")
    first, second = standing.replicas()
    assert first == Replica(1, "n", "following", 5, 5, ("http://c:1",), "1.0", None)
    assert (second.member_id, second.seen_s) == (2, 1.0)


@pytest.mark.parametrize("role", ["following", "leading"])
def test_only_the_leader_hands_over(standing, role):
    resigned = []

    async def resign():
        resigned.append(role)

    standing.enter(role)
    assert not run(standing.hand_over())  # it does not run yet
    standing.resign = resign
    assert run(standing.hand_over()) is (role == "leading")
    assert resigned == (["leading"] if role == "leading" else [])


# With an engine, in simulated time.


def watched(course, *, log=None):
    """Run a course with a standing that watches an engine, whose faults the course makes."""

    async def main():
        loop = asyncio.get_running_loop()
        memory = log or MemoryLog()
        faults = Faults(memory)
        engine = MemoryEngine(memory, faults)
        await engine.open(1, 0, b"chain000", made_by="t", made_at_ns=0)
        standing = ReplicaStanding(1, now=loop.time, clock_ns=lambda: 0)
        standing.enter("following")
        watching = asyncio.ensure_future(standing.watch(engine))
        try:
            await course(standing, engine, faults)
        finally:
            watching.cancel()

    run(main())


def test_a_frame_that_is_not_applied_is_behind_until_it_is():
    async def course(standing, engine, _faults):
        await asyncio.sleep(1.5)
        assert (standing.behind_frames, standing.behind_s) == (0, 0.0)
        lead = await engine.campaign(Candidate(2, "n", "p", 0))
        await engine.append(lead.epoch, 1, b"chain000", b"chain001", b"payload")
        await engine.append(lead.epoch, 2, b"chain001", b"chain002", b"payload")
        await asyncio.sleep(4)
        assert standing.behind_frames == 2
        assert 2.5 < standing.behind_s < 4
        standing.applied(1, 7)
        assert standing.behind_frames == 1
        assert standing.behind_s > 2.5
        standing.applied(2, 7)
        assert (standing.behind_frames, standing.behind_s) == (0, 0.0)

    watched(course)


def test_a_silent_engine_is_not_reachable_and_its_silence_is_counted():
    async def course(standing, _engine, faults):
        await asyncio.sleep(1.5)
        assert standing.engine.silent_s < 1.1
        assert await standing.is_reachable()
        faults.mute()
        await asyncio.sleep(8)
        assert standing.engine.silent_s > 6
        assert not await standing.is_reachable()
        faults.heal()
        await asyncio.sleep(5)
        assert standing.engine.silent_s < 1.1
        assert await standing.is_reachable()

    watched(course)


def test_before_it_watches_no_engine_is_reachable(standing):
    assert not run(standing.is_reachable())


def test_a_follower_that_does_not_report_fails_each_time_it_should_have():
    async def course(standing, _engine, _faults):
        loop = asyncio.get_running_loop()
        standing.enter("leading")
        # One that has not changed since it was read first may be as old as it likes.
        reports = {1: Seen(REPORT, loop.time()), 2: Seen(REPORT, float("-inf"))}
        standing.upkeep = SimpleNamespace(reports=reports, room=None, refusal="")
        await asyncio.sleep(1.5)
        assert [(each.member_id, each.failures) for each in standing.followers()] == [(2, 0)]
        await asyncio.sleep(8)
        (follower,) = standing.followers()  # the own report is not one of a follower
        assert 2 <= follower.failures <= 4
        before = follower.failures
        for _ in range(4):
            reports[2] = Seen(REPORT, loop.time())
            await asyncio.sleep(2)
        assert standing.followers()[0].failures == before

    watched(course)
