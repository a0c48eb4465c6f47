"""histogram.py: each value is counted once, in the right bucket, whenever it is counted."""

from bisect import bisect_left
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.core.histogram import DURATIONS_S, SNAPSHOTS_S, Histogram, Noted

BOUNDS = (1.0, 2.0, 4.0)


def test_a_value_at_a_bound_is_not_above_it():
    histogram = Histogram(BOUNDS)
    for value in (0.0, 1.0, 1.5, 2.0, 4.0, 4.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1, 1]
    assert histogram.cumulative() == [("1", 2), ("2", 4), ("4", 5), ("+Inf", 6)]
    assert histogram.total == 13.0


def test_several_values_of_one_size_are_as_many_alone():
    together, alone = Histogram(BOUNDS), Histogram(BOUNDS)
    together.observe(3.0, 5)
    for _ in range(5):
        alone.observe(3.0)
    assert (together.counts, together.total) == (alone.counts, alone.total)


@given(st.lists(st.floats(0, 10) | st.sampled_from(BOUNDS)))
def test_a_list_is_counted_as_its_values_are(values):
    listed, counts = Histogram(BOUNDS), [0] * (len(BOUNDS) + 1)
    for value in values:
        counts[bisect_left(BOUNDS, value)] += 1
    total = pytest.approx(sum(values))
    listed.take(values)
    assert (listed.counts, listed.total) == (counts, total)
    assert values == []


def test_bounds_that_are_left_out_lose_no_value():
    histogram = Histogram(BOUNDS)
    for value in (0.5, 1.5, 3.0, 9.0):
        histogram.observe(value)
    assert histogram.cumulative(lowest=2.0, highest=2.0) == [("2", 2), ("+Inf", 4)]


def test_what_was_noted_by_any_thread_is_counted_once():
    noted = Noted(BOUNDS)
    threads = [Thread(target=lambda: [noted.note(0.5) for _ in range(1000)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        noted.fold()
    assert noted.cumulative()[-1] == ("+Inf", 3000)
    assert noted.cumulative()[-1] == ("+Inf", 3000)
    assert noted.total == 1500.0


@pytest.mark.parametrize("bounds", [DURATIONS_S, SNAPSHOTS_S])
def test_bounds_are_shown_in_full(bounds):
    shown = [text for text, _ in Histogram(bounds).cumulative()][:-1]
    assert [float(text) for text in shown] == list(bounds)
