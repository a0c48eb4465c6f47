"""Every row of the comparison with etcd as a benchmark: saved, and compared with later ones.

A row measures by its own clocks (a load generator's rate, the time until the last watcher was told,
a start), so pytest-benchmark is given a timer that goes forward by what a row measured. Where that
is no time, as with memory, it stands in the figures beside it (`extra_info`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bench.compare import catalogue
from bench.compare.fleet import QUICK, Fleet, Scale
from bench.compare.rows import OURS, THEIRS
from bench.load import servers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.compare.rows import Measured

ROWS = {row.name: row for row in catalogue.rows(Scale())}


class RowTimer:
    """A clock in seconds that only `advance` moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s

    def advance(self, measured: Measured) -> None:
        """Go forward by the first of a row's figures that is a time, or a rate."""
        figures = measured.figures
        for name, in_s in (("told_ms", 1e-3), ("ready_s", 1.0), ("put_p99_ms", 1e-3)):
            if name in figures:
                self.now_s += figures[name] * in_s
                return
        if "rate" in figures:
            self.now_s += 1 / figures["rate"]
        else:
            # The largest store stands last.
            *_, largest = (us for name, us in figures.items() if name.startswith("us_at_"))
            self.now_s += largest / 1e6


TIMER = RowTimer()


@pytest.fixture(scope="module")
def scale(request: pytest.FixtureRequest) -> Scale:
    """The scale of the rows."""
    return Scale() if request.config.getoption("--bench-full") else replace(QUICK, rounds=3)


@pytest.fixture(scope="module", params=[OURS, THEIRS])
def fleet(request: pytest.FixtureRequest, scratch: Path, scale: Scale) -> Iterator[Fleet]:
    """Servers of one kind, started as the rows ask for them."""
    if request.param == THEIRS and servers.why_no_etcd():
        pytest.skip(servers.why_no_etcd())
    made = Fleet(scratch, scale, lambda _line: None)
    made.makers = [servers.kvd if request.param == OURS else servers.etcd]
    yield made
    made.leave()


@pytest.fixture
def group(fleet: Fleet, name: str) -> str:
    """Leave the servers of another group than the row's."""
    wanted = ROWS[name].group
    if fleet.group != wanted:
        fleet.leave()
        fleet.group = wanted
    return wanted


@pytest.mark.timeout(0)  # loading a million keys takes minutes
@pytest.mark.benchmark(timer=TIMER)
@pytest.mark.parametrize("name", ROWS)
def test_row(
    benchmark: BenchmarkFixture, fleet: Fleet, scale: Scale, group: str, name: str
) -> None:
    """One row; the data is verified by it."""
    row = next(row for row in catalogue.rows(scale) if row.name == name)
    server = OURS if fleet.makers == [servers.kvd] else THEIRS
    if group == "sizes" and server == THEIRS:
        pytest.skip("a store of ten million keys is made by kvd's own bulk load")
    benchmark.group = row.title
    turn = 0

    def measure() -> Measured:
        nonlocal turn
        measured = row.measure(fleet, turn)[server]
        TIMER.advance(measured)
        turn += 1
        return measured

    rounds = 1 if row.once else scale.rounds
    last = benchmark.pedantic(measure, rounds=rounds)  # type: ignore[no-untyped-call]
    benchmark.extra_info |= last.figures
