"""Three replicas under seeded schedules of faults: nothing acknowledged is lost, twice or stale.

The full size is `pytest -m durability_full tests/replicas/test_schedules.py`: 1,000 schedules, and
builds that lack one rule each, which the schedules find.
"""

import asyncio
from collections import Counter

import pytest

from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import Change, Kind
from kvd.v2.commands import CompareAndSwap, Create, Delete, Set, Transaction
from kvd.v2.documents.decision import Reply
from kvd.v2.errors import ApiError
from tests.support.replica_checker import Checker, Wrong
from tests.support.replica_schedules import FAULTS, run

SEEDS = 30
SEEDS_FULL = 1000


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(100)


def counted(seeds):
    counts, faults = Counter(), Counter()
    for seed in seeds:
        schedule = run(seed)
        counts.update(schedule.checker.counts)
        faults.update(schedule.faults)
    return counts, faults


def test_nothing_acknowledged_is_lost_twice_or_stale():
    counts, faults = counted(range(SEEDS))
    assert counts["done"] > 20 * SEEDS
    assert min(counts[what] for what in ("refused", "unknown", "reads", "timeouts", "cut")) > 0
    assert set(faults) == {name for name, _ in FAULTS}


@pytest.mark.durability_full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(SEEDS, SEEDS_FULL, 97))
def test_nothing_acknowledged_is_lost_twice_or_stale_in_many_schedules(first):
    counted(range(first, min(first + 97, SEEDS_FULL)))


def test_a_schedule_of_the_same_seed_is_the_same():
    one, other = run(7, steps=50), run(7, steps=50)
    assert [event.change for event in one.checker.history.values()] == [
        event.change for event in other.checker.history.values()
    ]
    assert one.checker.counts == other.checker.counts


# Builds without a rule.


def reads_at_once(process):
    """Do not ask the engine before a quorum read."""

    async def catch_up():
        pass

    process.read_index.catch_up = catch_up


def responds_early(process):
    """Do not wait until the frame is here that a refusal was decided on."""
    process.applied.when = lambda _seq, call: call()


def confirms_nothing(process):
    """Refuse without proof of leadership."""
    process.committer._flow._confirm = lambda done: done(None)


def sends_again_too_early(process):
    """Know leaders from elsewhere than from the tail."""

    async def hurry():
        log, leadership = process.site.engine.log, None
        while True:
            if log.leadership != leadership:
                leadership = log.leadership
                if process.me != leadership.leader:
                    process.forwarding.on_leadership(leadership)
                    process.peers.on_leadership(leadership)
            await asyncio.sleep(0.01)

    process.tasks.append(asyncio.create_task(hurry()))


def forgets_counters(process):
    """Queue what comes again in the same lead."""

    class Forgetful(dict):
        def setdefault(self, key, default):
            self[key] = default
            return default

    process.forwarding._received._processes = Forgetful()


def knows_no_epochs(process):
    """Take what was sent for an earlier lead."""
    forwarding = process.forwarding
    take = forwarding.take_commands

    async def take_any(link, epoch, items):
        await take(link, forwarding._received.epoch or epoch, items)

    forwarding.take_commands = take_any


def is_found(prepare, seeds):
    for seed in range(seeds):
        try:
            run(seed, prepare=prepare)
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("prepare", [reads_at_once, responds_early])
def test_a_build_without_a_rule_is_found(prepare):
    assert is_found(prepare, SEEDS)


@pytest.mark.durability_full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "prepare", [confirms_nothing, sends_again_too_early, forgets_counters, knows_no_epochs]
)
def test_a_build_without_a_rarer_rule_is_found(prepare):
    assert is_found(prepare, SEEDS_FULL)


# The checker.


def event(index, value, *, key=b"/a", prev=None, kind=Kind.SET):
    change = Change(kind, index, key, value, False, index)
    held = None if prev is None else Node(prev, 1, 1, 0, 0)
    return Event(change, held, 0)


class Course:
    """Two replicas and a client, as the checker sees them."""

    def __init__(self):
        self.checker = Checker(late_s=7)
        self.replicas = [self.checker.follow(0), self.checker.follow(0)]
        self._numbers = 0

    def logs(self, *events):
        for replica in self.replicas:
            replica.observe([(event, None) for event in events])

    def does(self, command, outcome, applied=9, took_s=1):
        self._numbers += 1
        asked = self.checker.sends(self._numbers, command, command[1], 0.0)
        self.checker.responds(asked, outcome, applied, took_s)

    def ends(self, states=("same", "same")):
        self.checker.check(states)


def refused(code, index):
    return ApiError(code, b"", index)


def all_is_well(c):
    c.logs(
        event(1, b"c1"), event(2, b"c2", prev=b"c1"), event(3, None, kind=Kind.DELETE, prev=b"c2")
    )
    c.does(Set(b"/a", b"c1"), event(1, b"c1"))
    c.does(Set(b"/a", b"c2"), event(2, b"c2", prev=b"c1"))
    c.does(Create(b"/a", b"c3"), refused(105, 2))
    c.does(CompareAndSwap(b"/a", b"c4", b"c1", 0), refused(101, 2))
    c.does(Set(b"/a", b"c5"), ApiError(300, b"outcome unknown"))
    c.does(Delete(b"/a", b""), refused(100, 3))
    c.does(Set(b"", b""), Reply())


def a_lost_write(c):
    c.does(Set(b"/a", b"c1"), event(1, b"c1"))


def a_write_done_twice(c):
    c.logs(event(1, b"c1"), event(2, b"c1", prev=b"c1"))
    c.does(Set(b"/a", b"c1"), event(1, b"c1"))


def a_write_refused_and_done(c):
    c.logs(event(1, b"c1"))
    c.does(Create(b"/a", b"c1"), refused(105, 0))


def a_write_of_unknown_outcome_done_twice(c):
    c.logs(event(1, b"c1"), event(2, b"c1", prev=b"c1"))
    c.does(Set(b"/a", b"c1"), ApiError(300, b"outcome unknown"))


def a_transaction_done_in_part(c):
    c.logs(event(1, b"c1"))
    transaction = Transaction(b"", (), (Set(b"/a", b"c1"), Set(b"/b", b"c1")))
    c.checker.dies(c.checker.sends(1, transaction, b"c1", 0.0))


def a_stale_read(c):
    c.logs(event(1, b"c1"))
    c.does(Set(b"/a", b"c1"), event(1, b"c1"))
    c.checker.reads(1, 0)


def a_stale_refusal(c):
    c.logs(event(1, b"c1"))
    c.does(Set(b"/a", b"c1"), event(1, b"c1"))
    c.does(Delete(b"/a", b""), refused(100, 0))


def a_wrong_refusal(c):
    c.logs(event(1, b"c1"))
    c.does(Delete(b"/a", b""), refused(100, 1))


def a_stale_previous_value(c):
    c.logs(event(1, b"c1"), event(2, b"c2", prev=b"c1"))
    c.does(Set(b"/a", b"c2"), event(2, b"c2", prev=b"c0"))


def an_order_that_goes_back(c):
    c.logs(event(1, b"c2"), event(2, b"c1", prev=b"c2"))
    c.does(Set(b"/a", b"c1"), event(2, b"c1", prev=b"c2"))
    c.does(Set(b"/a", b"c2"), event(1, b"c2"))


def a_response_before_the_own_state_has_it(c):
    c.logs(event(1, b"c1"))
    c.does(Set(b"/a", b"c1"), event(1, b"c1"), applied=0)


def a_late_response(c):
    c.logs(event(1, b"c1"))
    c.does(Set(b"/a", b"c1"), event(1, b"c1"), took_s=7.1)


def a_missing_response(c):
    c.checker.sends(1, Set(b"/a", b"c1"), b"c1", 0.0)


def a_gap(c):
    c.logs(event(1, b"c1"), event(3, b"c2"))


def a_repeated_event(c):
    c.logs(event(1, b"c1"))
    c.logs(event(1, b"c1"))


def an_index_given_twice(c):
    c.replicas[0].observe([(event(1, b"c1"), None)])
    c.replicas[1].observe([(event(1, b"c2"), None)])


def unequal_replicas(c):
    c.ends(["one", "other"])


WRONG = {
    a_lost_write: "lost",
    a_write_done_twice: "twice",
    a_write_refused_and_done: "refused and done",
    a_write_of_unknown_outcome_done_twice: "twice",
    a_transaction_done_in_part: "lost",
    a_stale_read: "stale",
    a_stale_refusal: "stale",
    a_wrong_refusal: "stale",
    a_stale_previous_value: "stale",
    an_order_that_goes_back: "order",
    a_response_before_the_own_state_has_it: "early",
    a_late_response: "late",
    a_missing_response: "no response",
    a_gap: "gap",
    a_repeated_event: "gap",
    an_index_given_twice: "index given twice",
    unequal_replicas: "unequal",
}


def test_the_checker_finds_nothing_where_all_is_well():
    is_checked(all_is_well)


@pytest.mark.parametrize("story", WRONG, ids=[story.__name__ for story in WRONG])
def test_the_checker_finds(story):
    with pytest.raises(Wrong, match=f"^{WRONG[story]}"):
        is_checked(story)


def is_checked(story):
    course = Course()
    story(course)
    course.ends()
