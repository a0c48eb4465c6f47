"""Text as Go's fmt package prints it."""

import pytest

from kvd.v2.go_text import go_duration

S = 1_000_000_000


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (999, "999ns"),
        (1_000, "1µs"),
        (1_100, "1.1µs"),
        (999_999, "999.999µs"),
        (1_000_000, "1ms"),
        (350_500_000, "350.5ms"),
        (999_999_999, "999.999999ms"),
        (S, "1s"),
        (5_878_434_044, "5.878434044s"),
        (59 * S, "59s"),
        (60 * S, "1m0s"),
        (143_100_000_000, "2m23.1s"),
        (143_116_042_009, "2m23.116042009s"),
        (3605 * S, "1h0m5s"),
        (3600 * S, "1h0m0s"),
        (100 * 3600 * S + 1, "100h0m0.000000001s"),
    ],
)
def test_durations_are_written_as_go_does(ns, text):
    assert go_duration(ns) == text
