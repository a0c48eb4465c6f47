"""A row of the comparison: its measure and its demands.

A *round* measures every server of a row once, one after another. Each gives figures by name, all in
the units that `FIGURES` names. A *demand* is about one figure: its ratio to the other server's in
the same round, or kvd's own; it is reached when the median over the rounds keeps the bound.

A round in which the machine had much else to do does not count, and a row without enough rounds
that count, or in which the other server did half as much in one round as in another, is not called
measured: its ratios may flatter either of the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from bench.compare.conditions import Conditions

if TYPE_CHECKING:
    from bench.compare.fleet import Fleet
    from bench.load.closed_loop import Figures

OURS, THEIRS = "kvd", "etcd"

FIGURES = {
    "rate": ("requests/s", ",.0f"),
    "reads_rate": ("reads/s beside", ",.0f"),
    "p50_ms": ("p50, ms", ".2f"),
    "p99_ms": ("p99, ms", ".2f"),
    "get_p99_ms": ("GET p99, ms", ".2f"),
    "told_ms": ("PUT to the last told, ms", ".1f"),
    "get_max_ms": ("longest GET meanwhile, ms", ".1f"),
    "watcher_bytes": ("bytes per watcher", ",.0f"),
    "anonymous_mb": ("anonymous RSS, MB", ",.1f"),
    "ready_s": ("ready after kill -9, s", ".3f"),
    "rebuilt_s": ("ready, rebuilt from snapshot and log, s", ".3f"),
    "put_excess_ms": ("PUT p99 above that without a snapshot, ms", ".1f"),
    "cost": ("time per request, times that in the smallest store", ".2f"),
    "tail": ("p99, times that in the smallest store", ".2f"),
}
"""The figures that a table shows: what they are called, and how many digits they get."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one server in one round."""

    figures: dict[str, float]
    latencies_us: tuple[float, ...] = ()
    """At `bench.load.closed_loop.PERCENTS`."""
    generator: str = ""

    @classmethod
    def of(cls, figures: Figures) -> Measured:
        """Return the figures of a load."""
        numbers = {
            "rate": figures.rate,
            "p50_ms": figures.p50_us / 1e3,
            "p99_ms": figures.p99_us / 1e3,
            "server_cpu_us": figures.server_cpu_us,
            "generator_cpu_us": figures.generator_cpu_us,
            "requests": figures.requests,
        }
        if figures.get_p99_us:
            numbers["get_p99_ms"] = figures.get_p99_us / 1e3
        return cls(numbers, figures.latencies_us, figures.generator)


Round = dict[str, Measured]


@dataclass(frozen=True, slots=True)
class Demand:
    """A bound for one figure."""

    figure: str
    bound: float
    at_least: bool = True
    own: bool = False
    """Whether it is kvd's figure that is bounded, and not its ratio to etcd's."""

    def of(self, measured: Round) -> float | None:
        """Return what is bounded, as a round has it; None where a server did not run."""
        if OURS not in measured or (not self.own and THEIRS not in measured):
            return None
        ours = measured[OURS].figures[self.figure]
        return ours if self.own else ours / max(measured[THEIRS].figures[self.figure], 1e-9)

    def is_reached(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound

    @property
    def text(self) -> str:
        """The bound as a table shows it."""
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}" if self.own else f"{sign} {self.bound:g} times"


def at_least(bound: float, figure: str = "rate") -> Demand:
    """Demand so many times etcd's figure."""
    return Demand(figure, bound)


def at_most(bound: float, figure: str) -> Demand:
    """Demand no more than so many times etcd's figure."""
    return Demand(figure, bound, at_least=False)


def below(bound: float, figure: str) -> Demand:
    """Demand that kvd's own figure is no larger than this."""
    return Demand(figure, bound, at_least=False, own=True)


@dataclass(frozen=True, slots=True)
class Row:
    """A kind of work, done by both servers in turn.

    `group` is what servers it needs: rows of one group share them. A row without demands is shown
    for comparison (`shown`) and in the plots.
    """

    name: str
    title: str
    group: str
    measure: Callable[[Fleet, int], Round]
    demands: tuple[Demand, ...] = ()
    shown: Demand = Demand("rate", 0.0)
    once: bool = False
    """Whether one round is all there is."""
    reduced: bool = False
    """Whether it is measured at a smaller size than its demands speak of."""


@dataclass(slots=True)
class Result:
    """A row and its rounds."""

    row: Row
    rounds: list[Round] = field(default_factory=list)
    failed: str = ""
    """Why it ended early; figures of a row that failed are worth nothing."""
    conditions: list[Conditions] = field(default_factory=list)
    """Of each round, as far as they are known."""

    @property
    def counted(self) -> list[Round]:
        """The rounds in which the machine had little else to do; all, if there are none."""
        known = dict(enumerate(self.conditions))
        quiet = [r for n, r in enumerate(self.rounds) if n not in known or not known[n].is_busy]
        return quiet or self.rounds

    @property
    def doubt(self) -> str:
        """Why the row is not called measured, or nothing."""
        # A figure of one round is one of memory, which does not depend on other processes.
        if self.row.once:
            return ""
        busy = [conditions for conditions in self.conditions if conditions.is_busy]
        if 2 * len(busy) > len(self.rounds):
            worst = max(busy, key=lambda conditions: conditions.others + conditions.stolen)
            return (
                f"the machine was busy in {len(busy)} of {len(self.rounds)} rounds ({worst.text})"
            )
        rates = [
            r[THEIRS].figures["rate"]
            for r in self.counted
            if THEIRS in r and "rate" in r[THEIRS].figures
        ]
        if rates and max(rates) >= 2 * min(rates):
            return (
                f"{THEIRS} did {min(rates):,.0f}/s in one round and {max(rates):,.0f}/s in another"
            )
        return ""

    def values(self, demand: Demand) -> list[float]:
        """Return what is bounded, round by round, as far as the rounds count."""
        return [value for r in self.counted if (value := demand.of(r)) is not None]

    def median(self, server: str, figure: str) -> float | None:
        """Return the median of a figure over what counts; None where it was not measured."""
        values = [
            measured[server].figures[figure]
            for measured in self.counted
            if server in measured and figure in measured[server].figures
        ]
        return median(values) if values else None

    def reached(self, demand: Demand) -> bool | None:
        """Whether a demand is reached; None where it was not measured."""
        values = self.values(demand)
        if not values or self.failed or self.doubt:
            return None
        return demand.is_reached(median(values))

    def as_json(self) -> dict[str, object]:
        """Return all that was measured."""
        return {
            "name": self.row.name,
            "title": self.row.title,
            "reduced": self.row.reduced,
            "failed": self.failed,
            "doubt": self.doubt,
            "conditions": [asdict(conditions) for conditions in self.conditions],
            "demands": [
                asdict(demand) | {"values": self.values(demand), "reached": self.reached(demand)}
                for demand in self.row.demands
            ],
            "rounds": [{name: asdict(m) for name, m in r.items()} for r in self.rounds],
        }
