"""Quantiles of the time between two samples, of the counts in buckets."""

import pytest

from kvd.core.histogram import DURATIONS_S
from kvd.monitoring.samples import _quantile

EMPTY = [0] * (len(DURATIONS_S) + 1)


def counted(**places: int) -> list[int]:
    counts = [*EMPTY]
    for place, count in places.items():
        counts[int(place[1:])] = count
    return counts


def test_without_values_there_is_none():
    assert _quantile(EMPTY, 0.5) is None


@pytest.mark.parametrize(
    ("counts", "share", "low", "high"),
    [
        (counted(_0=10), 0.5, 0.0, DURATIONS_S[0]),
        (counted(_3=10), 0.5, DURATIONS_S[2], DURATIONS_S[3]),
        (counted(_3=99, _9=1), 0.5, DURATIONS_S[2], DURATIONS_S[3]),
        (counted(_3=90, _9=10), 0.99, DURATIONS_S[8], DURATIONS_S[9]),
        (counted(_17=1), 0.99, DURATIONS_S[-1], DURATIONS_S[-1]),
    ],
)
def test_a_quantile_is_in_its_bucket(counts, share, low, high):
    found = _quantile(counts, share)
    assert found is not None
    assert low <= found <= high
