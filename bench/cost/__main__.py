"""What a request costs, counted instead of timed: `python -m bench.cost`.

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
import os
import shutil
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.cost.in_process import Inside
from bench.load.wire import render
from kvd.storage.index import environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

BATCH = 16
CHILDREN = 100
WATCHERS = 64
STEPS_BEFORE = 6
STEPS = 21
STEPS_KEPT = 100
"""So many that what is made once, some forty blocks, is less than one each."""

KEYS = "/v2/keys/cost"
_VALUE = b"x" * 100
_WRITE = b"value=" + _VALUE
_SWAP = b"prevValue=%b&value=%b" % (_VALUE, _VALUE)
_REFRESH = b"ttl=6000&refresh=true&prevExist=true"

_MEMORY = "/dev/shm"
_STORES_BYTES = 1 << 30  # one store for each kind of figure, each with two segments reserved

# The event loop's own turns, and what stands at the ends of the way.
_UNCOUNTED = ("/asyncio/", "/selectors.py", "/threading.py", "/queue.py", "/bench/")

Step = Callable[[], object]


class Case(NamedTuple):
    """A step that is counted: `make` prepares it; what it costs is divided by `per`."""

    name: str
    make: Callable[[Inside], Step]
    per: int = 1


def get(kvd: Inside) -> Step:
    """Read a key."""
    kvd.request("PUT", KEYS + "/get", _WRITE)
    return lambda: kvd.request("GET", KEYS + "/get")


def put_alone(kvd: Inside) -> Step:
    """Overwrite a key, in a batch of its own."""
    return lambda: kvd.request("PUT", KEYS + "/put", _WRITE)


def put_together(kvd: Inside) -> Step:
    """Overwrite keys, a batch of many."""
    return together(kvd, [("PUT", f"{KEYS}/batch/{n}", _WRITE) for n in range(BATCH)])


def together(kvd: Inside, *batches: list[tuple[str, str, bytes]]) -> Step:
    """Return what sends requests, each list of them as one batch."""
    rendered = [[render(*request) for request in batch] for batch in batches]

    def step() -> None:
        for requests in rendered:
            kvd.send_together(requests)
            for connection in range(len(requests)):
                kvd.receive(connection)

    return step


def put_escaped(kvd: Inside) -> Step:
    """Overwrite keys with a document that has to be escaped, in the form and in the answer."""
    body = b"value=%7B%22name%22%3A+%22a%26b%22%2C+%22list%22%3A+%5B1%2C+2%5D%7D"
    return together(kvd, [("PUT", f"{KEYS}/escaped/{n}", body) for n in range(BATCH)])


def compare_and_swap(kvd: Inside) -> Step:
    """Overwrite a key on condition of the value before."""
    kvd.request("PUT", KEYS + "/cas", _WRITE)
    return lambda: kvd.request("PUT", KEYS + "/cas", _SWAP)


def swap_together(kvd: Inside) -> Step:
    """Overwrite keys on that condition, a batch of many."""
    paths = [f"{KEYS}/swaps/{n}" for n in range(BATCH)]
    for path in paths:
        kvd.request("PUT", path, _WRITE)
    return together(kvd, [("PUT", path, _SWAP) for path in paths])


def swap_by_query(kvd: Inside) -> Step:
    """The same, with the condition in the query string, as etcd's own client has it."""
    paths = [f"{KEYS}/queried/{n}" for n in range(BATCH)]
    for path in paths:
        kvd.request("PUT", path, _WRITE)
    query = "?prevValue=" + _VALUE.decode()
    return together(kvd, [("PUT", path + query, _WRITE) for path in paths])


def post(kvd: Inside) -> Step:
    """Add an in-order key."""
    return lambda: kvd.request("POST", KEYS + "/post", _WRITE)


def post_together(kvd: Inside) -> Step:
    """Add in-order keys, a batch of many."""
    return together(kvd, [("POST", KEYS + "/posts", _WRITE)] * BATCH)


def delete(kvd: Inside) -> Step:
    """Make a key and delete it."""

    def step() -> None:
        kvd.request("PUT", KEYS + "/delete", _WRITE)
        kvd.request("DELETE", KEYS + "/delete")

    return step


def delete_together(kvd: Inside) -> Step:
    """Make keys and delete them, each a batch of many."""
    paths = [f"{KEYS}/deleted/{n}" for n in range(BATCH)]
    puts = [("PUT", path, _WRITE) for path in paths]
    return together(kvd, puts, [("DELETE", path, b"") for path in paths])


def refresh(kvd: Inside) -> Step:
    """Refresh a TTL."""
    kvd.request("PUT", KEYS + "/refresh", b"ttl=6000&value=" + _VALUE)
    return lambda: kvd.request("PUT", KEYS + "/refresh", _REFRESH)


def refresh_together(kvd: Inside) -> Step:
    """Refresh TTLs, a batch of many."""
    paths = [f"{KEYS}/leases/{n}" for n in range(BATCH)]
    for path in paths:
        kvd.request("PUT", path, b"ttl=6000&value=" + _VALUE)
    return together(kvd, [("PUT", path, _REFRESH) for path in paths])


def list_kept(kvd: Inside) -> Step:
    """List a directory that nobody has changed."""
    for n in range(CHILDREN):
        kvd.request("PUT", f"{KEYS}/kept/{n}", _WRITE)
    return lambda: kvd.request("GET", KEYS + "/kept")


def list_anew(kvd: Inside) -> Step:
    """List a directory; what shows a TTL is rendered for each reader."""
    for n in range(CHILDREN - 1):
        kvd.request("PUT", f"{KEYS}/anew/{n}", _WRITE)
    kvd.request("PUT", KEYS + "/anew/ttl", b"ttl=6000&value=" + _VALUE)
    return lambda: kvd.request("GET", KEYS + "/anew")


def long_poll(kvd: Inside) -> Step:
    """Ask for the next event of a key on many connections, and write it."""
    request = render("GET", KEYS + "/polled?wait=true")
    write = render("PUT", KEYS + "/polled", _WRITE)

    def step() -> None:
        kvd.send_together([request] * WATCHERS)
        kvd.settle()
        kvd.exchange(WATCHERS, write)
        for connection in range(WATCHERS):
            kvd.receive(connection)

    return step


def stream(kvd: Inside) -> Step:
    """Write a key that many streams watch; they stay, so this case comes last."""
    kvd.send_together([render("GET", KEYS + "/streamed?wait=true&stream=true")] * WATCHERS)
    kvd.settle()
    write = render("PUT", KEYS + "/streamed", _WRITE)

    def step() -> None:
        kvd.exchange(WATCHERS, write)
        for connection in range(WATCHERS):
            kvd.receive_until(connection, is_told)

    return step


def is_told(received: bytes) -> bool:
    """Whether a whole event of a stream has come."""
    return received.endswith(b"}\n\r\n")


CASES = (
    Case("GET", get),
    Case("PUT", put_alone),
    Case(f"PUT, {BATCH} in a batch", put_together, BATCH),
    Case(f"PUT with escapes, {BATCH} in a batch", put_escaped, BATCH),
    Case("compare-and-swap", compare_and_swap),
    Case(f"compare-and-swap, {BATCH} in a batch", swap_together, BATCH),
    Case(f"compare-and-swap by query, {BATCH} in a batch", swap_by_query, BATCH),
    Case("in-order POST", post),
    Case(f"in-order POST, {BATCH} in a batch", post_together, BATCH),
    Case("PUT and DELETE", delete, 2),
    Case(f"PUT and DELETE, {BATCH} in a batch", delete_together, 2 * BATCH),
    Case("TTL refresh", refresh),
    Case(f"TTL refresh, {BATCH} in a batch", refresh_together, BATCH),
    Case("listing, unchanged", list_kept),
    Case("listing, each child", list_anew, CHILDREN),
    Case("long poll, asked and told", long_poll, WATCHERS),
    Case("stream, told", stream, WATCHERS),
)

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
    """Return what measures each step by itself, and tells the least figure."""
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


def in_memory() -> str | None:
    """Return a directory in memory with room for the stores, None where there is none."""
    try:
        is_wide = shutil.disk_usage(_MEMORY).free >= _STORES_BYTES
    except OSError:
        return None
    return _MEMORY if is_wide and os.access(_MEMORY, os.W_OK) else None


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
    if options.run:
        repeat(options.run[0], int(options.run[1]))
        return 0
    with tempfile.TemporaryDirectory(prefix="kvd-cost-", dir=in_memory()) as directory:
        figures = measure(Path(directory))
    print(json.dumps(figures) if options.json else table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
