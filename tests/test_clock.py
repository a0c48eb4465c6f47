"""kvd/clock.py: time that neither jumps nor goes back, whatever the system's clock does."""

import logging

import pytest

from kvd.clock import Clock

NOW_NS = 1_700_000_000_000_000_000
SECOND_NS = 1_000_000_000


class System:
    """The two clocks of the system, set by hand."""

    def __init__(self):
        self.wall_ns = NOW_NS
        self.up_ns = 12_345

    def time_ns(self):
        return self.wall_ns

    CLOCK_BOOTTIME = 7

    def clock_gettime_ns(self, clock):
        assert clock == self.CLOCK_BOOTTIME
        return self.up_ns

    def passes(self, ns):
        self.wall_ns += ns
        self.up_ns += ns


@pytest.fixture
def system(monkeypatch):
    system = System()
    monkeypatch.setattr("kvd.clock.time", system)
    return system


def test_it_begins_with_the_time_on_the_wall_and_goes_on_with_it(system):
    clock = Clock()
    assert clock.now_ns() == NOW_NS
    system.passes(5)
    assert clock.now_ns() == NOW_NS + 5


@pytest.mark.parametrize("step_ns", [3600 * SECOND_NS, -3600 * SECOND_NS, SECOND_NS, -SECOND_NS])
def test_a_step_of_the_systems_clock_changes_nothing_and_is_told_once(system, step_ns, caplog):
    clock = Clock()
    system.wall_ns += step_ns
    for _ in range(3):
        clock.follow()
        system.passes(SECOND_NS)
    assert clock.now_ns() == NOW_NS + 3 * SECOND_NS
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"{step_ns / SECOND_NS:.1f} s" in record.getMessage()


@pytest.mark.parametrize("drift_ns", [SECOND_NS - 1, 1000, -1000, 1 - SECOND_NS])
def test_small_drift_is_followed(system, drift_ns, caplog):
    clock = Clock()
    before_ns = clock.now_ns()
    system.wall_ns += drift_ns
    clock.follow()
    assert clock.now_ns() >= before_ns
    system.passes(2 * SECOND_NS)
    assert clock.now_ns() == system.wall_ns
    assert caplog.records == []


def test_it_never_goes_back(system):
    clock = Clock()
    system.passes(10 * SECOND_NS)
    last_ns = clock.now_ns()
    for drift_ns in (-900_000_000, 100, -900_000_000, 5):
        system.wall_ns += drift_ns
        clock.follow()
        system.passes(1)
        now_ns = clock.now_ns()
        assert now_ns >= last_ns
        last_ns = now_ns


def test_it_is_never_behind_the_last_time_that_was_logged(system, caplog):
    floor_ns = NOW_NS + 60 * SECOND_NS
    clock = Clock(floor_ns)
    assert clock.now_ns() == floor_ns
    system.passes(61 * SECOND_NS)
    # Expirations count from the log's time, and end although the system's clock is far behind.
    assert clock.now_ns() == floor_ns + 61 * SECOND_NS
    assert "60.0 s behind the log" in caplog.text


def test_a_log_that_is_a_moment_ahead_is_nothing_to_tell(system, caplog):
    clock = Clock(NOW_NS + 5)
    assert clock.now_ns() == NOW_NS + 5
    assert caplog.records == []
    system.passes(10)
    assert clock.now_ns() == NOW_NS + 15
    clock.follow()
    system.passes(10)
    assert clock.now_ns() == NOW_NS + 20
