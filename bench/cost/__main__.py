"""The cost of a request, counted instead of timed: `python -m bench.cost`.

A fixed script runs against a kvd inside this process, and each of its steps is counted:

    calls       functions called, those of Python and those in C, on all threads of the server
    bytecodes   instructions of Python executed, on the same threads
    peak bytes  the most memory in use during a step, above what was in use at its start
    kept        blocks of memory that a step leaves behind: what grows without end shows here

What asyncio itself does is left out of calls and bytecodes: how often its loop turns is chance.
Each figure is the least of the steps, so that what happens once a second does not show, and the
store lies in memory where it can: a slow disk makes other calls, and makes steps so long that none
is without such things. So calls and bytecodes are the same in each run and on each machine, and a
change of them is a change of the code (in another version of Python they are others). Peak bytes
differ by some hundred, for the client's reading is in them.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cost.cases import CASES, WATCHERS, Step
from bench.cost.in_process import Inside, in_memory, wait_for_syncs
from kvd.storage.index import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

STEPS_BEFORE = 6
STEPS = 21
STEPS_KEPT = 100
"""So many that what is made once, some forty blocks, is less than one each."""

# The event loop's own turns, and what stands at the ends of the way.
_UNCOUNTED = ("/asyncio/", "/selectors.py", "/threading.py", "/queue.py", "/bench/")

Measure = Callable[[Inside, Step], float]
"""Runs a step so many times, and tells what one of them costs."""


def measure(directory: Path) -> dict[str, dict[str, float]]:
    """Run the script once for each kind of figure; return the figures by case and by kind."""
    figures: dict[str, dict[str, float]] = {case.name: {} for case in CASES}
    for kind, kind_of in KINDS.items():
        for name, figure in kind_of(directory / kind.replace(" ", "-")):
            figures[name][kind] = round(figure, 2)
    return figures


def calls(directory: Path) -> Iterator[tuple[str, float]]:
    """Count functions called."""
    counter = itertools.count()
    is_counted = _Counted()

    def profile(frame: FrameType, event: str, _: object) -> None:
        # "call" comes with the frame of the called, "c_call" with that of the caller.
        if event in ("call", "c_call") and is_counted[frame.f_code.co_filename]:
            next(counter)

    threading.setprofile(profile)
    try:
        yield from run(directory, counted_by(counter))
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]


def bytecodes(directory: Path) -> Iterator[tuple[str, float]]:
    """Count instructions of Python."""
    counter = itertools.count()
    is_counted = _Counted()

    def count(_frame: FrameType, event: str, _: object) -> object:
        if event == "opcode":
            next(counter)
        return count

    def trace(frame: FrameType, _event: str, _: object) -> object:
        if not is_counted[frame.f_code.co_filename]:
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return count

    threading.settrace(trace)  # type: ignore[arg-type]
    try:
        yield from run(directory, counted_by(counter))
    finally:
        threading.settrace(None)  # type: ignore[arg-type]


def peak_bytes(directory: Path) -> Iterator[tuple[str, float]]:
    """Measure memory that is in use for a moment."""

    def peak(kvd: Inside, step: Step) -> float:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        kvd.settle()
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        yield from run(directory, by_step(peak))
    finally:
        tracemalloc.stop()


def kept(directory: Path) -> Iterator[tuple[str, float]]:
    """Count blocks of memory that are there afterwards."""

    def measured(kvd: Inside, step: Step) -> float:
        # What leaks does so each time; what the server does by the second comes in between.
        return min(once(kvd, step) for _ in range(3))

    def once(kvd: Inside, step: Step) -> float:
        kvd.flush()
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(STEPS_KEPT):
            step()
        kvd.settle()
        kvd.flush()
        gc.collect()
        return (sys.getallocatedblocks() - before) / STEPS_KEPT

    yield from run(directory, measured)


KINDS = {"calls": calls, "bytecodes": bytecodes, "peak bytes": peak_bytes, "kept": kept}


def counted_by(counter: itertools.count[int]) -> Measure:
    """Return what tells how often a counter is advanced during a step."""

    def count(kvd: Inside, step: Step) -> float:
        before = next(counter)
        step()
        kvd.settle()
        return next(counter) - before - 1

    return by_step(count)


def by_step(once: Measure) -> Measure:
    """Return a measure of single steps that returns the least figure."""
    return lambda kvd, step: min(once(kvd, step) for _ in range(STEPS))


def run(directory: Path, measured: Measure) -> Iterator[tuple[str, float]]:
    """Start a server and give what a step of each case costs."""
    with Inside(directory, connections=WATCHERS + 1) as kvd:
        for case in CASES:
            step = case.make(kvd)
            for _ in range(STEPS_BEFORE):
                step()
            gc.collect()
            yield case.name, measured(kvd, step) / case.per


def repeat(name: str, steps: int) -> None:
    """Run the steps of one case."""
    case = next(case for case in CASES if case.name == name)
    environment._MAP_BYTES = 1 << 35  # valgrind, which may be around this, maps no more
    with (
        tempfile.TemporaryDirectory(prefix="kvd-cost-") as directory,
        Inside(Path(directory, "data"), connections=WATCHERS + 1) as kvd,
    ):
        step = case.make(kvd)
        for _ in range(steps):
            step()


class _Counted(dict[str, bool]):
    """Whether what a source file does is counted, remembered."""

    def __missing__(self, filename: str) -> bool:
        counted = self[filename] = not any(part in filename for part in _UNCOUNTED)
        return counted


def table(figures: dict[str, dict[str, float]]) -> str:
    """Return the figures as a table in Markdown."""
    lines = ["| each | " + " | ".join(KINDS) + " |", "|---|" + "---:|" * len(KINDS)]
    for name, row in figures.items():
        lines.append(f"| {name} | " + " | ".join(f"{row[kind]:,.6g}" for kind in KINDS) + " |")
    return "\n".join(lines)


def main() -> int:
    """Count, and print the table, or JSON for a program."""
    parser = argparse.ArgumentParser(prog="python -m bench.cost", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--run",
        nargs=2,
        metavar=("CASE", "STEPS"),
        help="count nothing, run the steps of one case: for a profiler around this",
    )
    options = parser.parse_args()
    wait_for_syncs()
    if options.run:
        repeat(options.run[0], int(options.run[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="kvd-cost-", dir=in_memory()) as directory:
        figures = measure(Path(directory))
    print(json.dumps(figures) if options.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
