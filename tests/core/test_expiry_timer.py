"""expiry_timer.py: one timer, at the first expiration, by a clock that may be moved."""

from types import SimpleNamespace

import pytest

from kvd.core.clock import Clock
from kvd.core.expiry_timer import ExpiryTimer

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


class Loop:
    """Timers of a loop, which fire when the test says so."""

    def __init__(self):
        self.waits = []

    def call_later(self, wait_s, callback):
        timer = SimpleNamespace(wait_s=wait_s, fire=callback)
        timer.cancel = lambda: self.waits.remove(timer)
        self.waits.append(timer)
        return timer

    def fire(self):
        (timer,) = self.waits
        self.waits.clear()
        timer.fire()


class Timed:
    """A timer over a state whose first expiration, and a machine whose time, the test sets."""

    def __init__(self):
        self.raw_ns = 5 * SECOND_NS
        self.state = SimpleNamespace(due_ns=0)
        self.loop = Loop()
        self.calls = 0
        self.clock = Clock(raw_ns=lambda: self.raw_ns, wall_ns=lambda: NOW_NS)
        self.timer = ExpiryTimer(self.state, self.clock, self.loop, self.count)

    def count(self):
        self.calls += 1

    def arm(self, after_s):
        self.state.due_ns = self.clock.at(self.raw_ns) + int(after_s * SECOND_NS)
        self.timer.arm()

    @property
    def waits_s(self):
        return [timer.wait_s for timer in self.loop.waits]


@pytest.fixture
def timed():
    return Timed()


def test_nothing_that_ends_needs_no_timer(timed):
    timed.timer.arm()
    assert timed.waits_s == []
    assert not timed.timer.is_overdue


def test_it_waits_for_the_first_expiration(timed):
    timed.arm(7.5)
    assert timed.waits_s == [7.5]
    timed.loop.fire()
    assert timed.calls == 1


def test_an_earlier_or_later_expiration_takes_the_place_of_the_timer(timed):
    timed.arm(7.5)
    timed.arm(2)
    assert timed.waits_s == [2]
    timed.arm(9)
    assert timed.waits_s == [9]
    timed.state.due_ns = 0
    timed.timer.arm()
    assert timed.waits_s == []


def test_the_same_expiration_keeps_its_timer(timed):
    timed.arm(7.5)
    (before,) = timed.loop.waits
    timed.raw_ns += SECOND_NS
    timed.timer.arm()
    assert timed.loop.waits == [before]


def test_after_it_has_called_back_it_is_set_again_though_nothing_has_changed(timed):
    timed.arm(7.5)
    timed.loop.fire()
    timed.timer.arm()
    assert timed.waits_s == [7.5]


def test_what_ends_in_years_is_looked_at_each_hour(timed):
    timed.arm(10**9)
    assert timed.waits_s == [3600]


def test_what_has_ended_is_due_at_once(timed):
    timed.arm(-3)
    assert timed.waits_s == [0]
    assert timed.timer.is_overdue


def test_while_the_machine_was_suspended_it_becomes_overdue_without_a_call(timed):
    timed.arm(7.5)
    timed.raw_ns += 7 * SECOND_NS
    assert not timed.timer.is_overdue
    timed.raw_ns += SECOND_NS
    assert timed.timer.is_overdue
    assert timed.calls == 0


def test_a_clock_that_was_moved_sets_it_again(timed):
    timed.arm(10)
    timed.clock.raise_floor(timed.clock.at(timed.raw_ns) + 4 * SECOND_NS)
    timed.timer.clock_moved()
    assert timed.waits_s == [6]


def test_once_stopped_it_is_never_set_again(timed):
    timed.arm(7.5)
    timed.timer.stop()
    assert timed.waits_s == []
    timed.arm(1)
    timed.timer.clock_moved()
    assert timed.waits_s == []
