"""clock.py: the store's time neither jumps nor goes back, whatever the machine's clock does."""

import pytest

from kvd.core.clock import STEP_NS, Clock

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS


class System:
    """The two clocks of the system, set by hand."""

    CLOCK_BOOTTIME = 7

    def __init__(self):
        self.wall_ns = NOW_NS
        self.up_ns = 12_345
        self.reading_ns = 0

    def time_ns(self):
        self.up_ns += self.reading_ns
        return self.wall_ns

    def clock_gettime_ns(self, clock):
        assert clock == self.CLOCK_BOOTTIME
        return self.up_ns

    def passes(self, ns):
        self.wall_ns += ns
        self.up_ns += ns


@pytest.fixture
def system(monkeypatch):
    system = System()
    monkeypatch.setattr("kvd.core.clock.time", system)
    return system


def test_it_begins_with_the_time_on_the_wall_and_goes_on_with_it(system):
    clock = Clock()
    assert clock.now_ns() == NOW_NS
    system.passes(5)
    assert clock.now_ns() == NOW_NS + 5
    assert clock.at(clock.raw_ns()) == NOW_NS + 5
    assert clock.raw_of(NOW_NS + 5) == clock.raw_ns()
    assert clock.stepped_to(0) is None


@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS, STEP_NS, -STEP_NS])
def test_a_step_of_the_systems_clock_changes_the_offset_and_no_time(system, step_ns):
    clock = Clock()
    system.wall_ns += step_ns
    system.passes(SECOND_NS)
    assert clock.now_ns() == NOW_NS + SECOND_NS
    assert clock.stepped_to(0) == step_ns
    assert clock.stepped_to(step_ns) is None
    system.wall_ns += step_ns
    assert clock.stepped_to(step_ns) == 2 * step_ns
    system.wall_ns -= 2 * step_ns
    assert clock.stepped_to(2 * step_ns) == 0
    assert clock.now_ns() == NOW_NS + SECOND_NS


@pytest.mark.parametrize("step_ns", [STEP_NS - 1, 1 - STEP_NS])
def test_small_steps_are_none_until_they_have_become_one(system, step_ns):
    clock = Clock()
    system.wall_ns += step_ns
    assert clock.stepped_to(0) is None
    system.wall_ns += step_ns
    assert clock.stepped_to(0) == 2 * step_ns
    assert clock.now_ns() == NOW_NS


def test_a_pause_between_reading_two_clocks_is_no_step(system):
    clock = Clock()
    system.reading_ns = HOUR_NS
    assert clock.stepped_to(0) is None


@pytest.mark.parametrize("offset_ns", [HOUR_NS, -HOUR_NS, 0])
def test_a_start_goes_on_by_the_logged_offset(system, offset_ns):
    clock = Clock(NOW_NS - offset_ns - SECOND_NS, offset_ns)
    assert clock.now_ns() == NOW_NS - offset_ns
    assert clock.stepped_to(offset_ns) is None


def test_it_is_never_behind_the_last_time_that_was_logged(system, caplog):
    floor_ns = NOW_NS + 60 * SECOND_NS
    clock = Clock(floor_ns)
    assert clock.now_ns() == floor_ns
    system.passes(61 * SECOND_NS)
    # Expirations count from the log's time, and end although the system's clock is far behind.
    assert clock.now_ns() == floor_ns + 61 * SECOND_NS
    assert "60.0 s behind the log" in caplog.text
    # They are shown by the system's clock.
    assert clock.stepped_to(0) == -60 * SECOND_NS


def test_its_floor_is_raised_while_it_runs(system, caplog):
    clock = Clock()
    assert not clock.raise_floor(NOW_NS - HOUR_NS)
    assert not clock.raise_floor(NOW_NS)
    assert (clock.now_ns(), clock.stepped_to(0)) == (NOW_NS, None)
    assert caplog.records == []
    system.passes(SECOND_NS)
    assert clock.raise_floor(NOW_NS + HOUR_NS)
    assert "3599.0 s behind the log" in caplog.text
    assert clock.now_ns() == clock.at(clock.raw_ns()) == NOW_NS + HOUR_NS
    assert clock.raw_of(NOW_NS + HOUR_NS) == clock.raw_ns()
    # What clients are shown stays the time on the wall.
    assert clock.stepped_to(0) == SECOND_NS - HOUR_NS
    system.passes(SECOND_NS)
    assert clock.now_ns() == NOW_NS + HOUR_NS + SECOND_NS


def test_a_log_that_is_a_moment_ahead_is_not_reported(system, caplog):
    clock = Clock(NOW_NS + 5)
    assert clock.now_ns() == NOW_NS + 5
    assert clock.stepped_to(0) is None
    assert caplog.records == []
    system.passes(10)
    assert clock.now_ns() == NOW_NS + 15
