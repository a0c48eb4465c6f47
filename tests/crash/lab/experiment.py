"""An experiment: one promise, a seed, rounds, figures, and the bugs it must catch."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvd.testing.crash import Violation

__all__ = ["ALL", "Experiment", "Skipped", "Stopped", "Trial", "Violation", "need_strace"]

ALL = 1 << 30
"""As many rounds as there are cases."""


class Stopped(BaseException):
    """Whoever runs it wants it to end now, and to hear what it has found so far."""


class Skipped(Exception):
    """This machine lacks what the experiment needs; the text says what."""


def need_strace() -> None:
    """Raise `Skipped` on a machine where strace may not trace."""
    strace = shutil.which("strace")
    if strace is None:
        raise Skipped("strace is not installed")
    tried = subprocess.run([strace, "-qq", "-o", "/dev/null", "true"], check=False)
    if tried.returncode != 0:
        raise Skipped("strace may not trace here")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row of `crashlab list`.

    Attributes:
        promise: The invariant that is checked, in one line.
        mutants: Bugs of `mutant.py`, each of which it must catch.
        rounds: How many make a full run; `quick` how many make a short one.
        unit: What one round is, in the plural.
    """

    name: str
    promise: str
    mutants: tuple[str, ...]
    rounds: int
    quick: int
    unit: str
    run: Callable[["Trial"], None]


def counted(number: int, unit: str) -> str:
    """Return a number with its unit, whose plural is given: `1 end of the process`."""
    noun, *rest = unit.split(" ")
    if "of" not in rest and rest:  # failed syncs, power cuts
        noun, rest = unit, []
    if number == 1:
        ending, single = ("ies", "y") if noun.endswith("ies") else ("s", "")
        ending, single = ("es", "") if noun.endswith("xes") else (ending, single)
        noun = noun.removesuffix(ending) + single
    return f"{number:,} {' '.join([noun, *rest])}"


@dataclass
class Trial:
    """One run of an experiment: where it works, its dice, and what it found."""

    directory: Path
    seed: int
    rounds: int
    mutant: str | None = None
    bar: bool = False
    label: str = ""
    figures: dict[str, int | float | str] = field(default_factory=dict)
    distributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    plots: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.done = 0
        self._started = time.monotonic()

    def check(self, holds: object, problem: str) -> None:
        """Raise the violation unless something holds."""
        if not holds:
            raise Violation(problem)

    def count(self, name: str, number: int = 1) -> None:
        """Add to a figure."""
        self.figures[name] = int(self.figures.get(name, 0)) + number

    def sample(self, name: str, value: float, unit: str = "s") -> None:
        """Add a measurement to a distribution; the unit is `s`, `bytes`, or empty for a count."""
        found = self.distributions.setdefault(name, {"unit": unit, "values": []})
        found["values"].append(round(value, 6))

    def set_samples(self, name: str, values: Iterable[float], unit: str = "s") -> None:
        """Set all measurements of a distribution."""
        rounded = [round(value, 6) for value in values]
        self.distributions[name] = {"unit": unit, "values": rounded}

    def point(self, title: str, line: str, x: float, y: float, *, axes: tuple[str, str]) -> None:
        """Add a measurement to a line of a plot, whose axes have names with units."""
        plot = self.plots.setdefault(title, {"x": axes[0], "y": axes[1], "lines": {}})
        plot["lines"].setdefault(line, []).append([round(x, 6), round(y, 6)])

    def progress(self, done: int) -> None:
        """Keep how many rounds are done; draw the bar on standard error, where one is wanted."""
        self.done = done
        if not self.bar:
            return
        part = min(1.0, done / max(1, self.rounds))
        filled = "#" * round(30 * part)
        spent = time.monotonic() - self._started
        sys.stderr.write(f"\r{self.label:<26} [{filled:<30}] {done}/{self.rounds} {spent:6.1f} s ")
        if done >= self.rounds:
            sys.stderr.write("\n")
        sys.stderr.flush()
