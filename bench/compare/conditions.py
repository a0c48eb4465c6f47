"""The conditions of a measurement: the machine, and the CPU time of other processes meanwhile.

The time of others is the user time of the whole machine less that of this process and of all its
descendants. System time is left out: the kernel's own threads sync the servers' logs, and their
time cannot be assigned to a process. Both shares are of the time of all processors.
"""

from __future__ import annotations

import os
import platform
import sysconfig
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

OTHERS_MAX = 0.1
"""Beyond this share of others a measurement says more about them."""
STOLEN_MAX = 0.05
"""And beyond this share of time that the host of a virtual machine did not give it."""
_SHORTEST_S = 0.2
"""In less the clock's ticks, 10 ms each, say nothing."""


class Ticks(NamedTuple):
    """Times since the start of the machine, in seconds of one processor; `at` is any clock's."""

    at: float
    user: float
    stolen: float
    own: float


@dataclass(frozen=True, slots=True)
class Conditions:
    """The shares of the machine's time that others had during a measurement."""

    seconds: float
    others: float
    stolen: float

    @classmethod
    def between(cls, before: Ticks, after: Ticks, processors: int) -> Conditions:
        """Return them for the time between two looks at the machine."""
        seconds = after.at - before.at
        whole = max(seconds * processors, 1e-9)
        others = (after.user - before.user) - (after.own - before.own)
        return cls(
            seconds,
            min(max(others / whole, 0.0), 1.0),
            min(max((after.stolen - before.stolen) / whole, 0.0), 1.0),
        )

    @property
    def is_busy(self) -> bool:
        """Whether the machine had too much else to do."""
        is_shown = self.seconds >= _SHORTEST_S
        return is_shown and (self.others > OTHERS_MAX or self.stolen > STOLEN_MAX)

    @property
    def text(self) -> str:
        """The share of other processes, in words."""
        return f"others had {self.others:.0%} of the machine, its host {self.stolen:.0%}"


def look() -> Ticks:
    """Look at the machine now."""
    return parse(
        Path("/proc/stat").read_text(),
        {
            path.parent.name: stat
            for path in Path("/proc").glob("[0-9]*/stat")
            if (stat := _read(path))
        },
        own=os.getpid(),
        at=time.monotonic(),
        ticks_per_s=os.sysconf("SC_CLK_TCK"),
    )


def parse(whole: str, each: dict[str, str], *, own: int, at: float, ticks_per_s: int) -> Ticks:
    """Return what /proc/stat and the `stat` of each process say; `own` is whose tree is ours."""
    # user, nice, system, idle, iowait, irq, softirq, steal
    fields = [int(field) for field in whole.split("\n", 1)[0].split()[1:]]
    parents: dict[int, int] = {}
    user: dict[int, int] = {}
    for pid, stat in each.items():
        # Behind the name, which may hold anything: state, parent, ...; the user time is field 14
        # of all, that of its children that were waited for is field 16.
        rest = stat.rpartition(")")[2].split()
        parents[int(pid)] = int(rest[1])
        user[int(pid)] = int(rest[11]) + int(rest[13])
    ours = {pid for pid in parents if _is_below(pid, own, parents)}
    stolen = fields[7] if len(fields) > 7 else 0
    mine = sum(user[pid] for pid in ours)
    return Ticks(
        at, (fields[0] + fields[1]) / ticks_per_s, stolen / ticks_per_s, mine / ticks_per_s
    )


def build_of(arguments: str, vendor: str = "") -> str:
    """Return how a CPython was built, by the arguments of its `configure`.

    Distributions optimise without an argument that says so: of theirs only the vendor is known.
    """
    optimised = "--enable-optimizations" in arguments
    linked = "--with-lto" in arguments
    if optimised:
        return "optimised (PGO, LTO)" if linked else "optimised (PGO)"
    if linked:
        return "LTO without PGO"
    return f"as {vendor} builds it" if vendor else "plain, not optimised"


def python_build() -> str:
    """Return how this Python was built, which also runs the servers."""
    # Where the system's package manager is in charge, there is this file (PEP 668).
    is_vendors = Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    vendor = platform.freedesktop_os_release()["NAME"] if is_vendors else ""
    return build_of(str(sysconfig.get_config_var("CONFIG_ARGS") or ""), vendor)


def event_loop() -> str:
    """Return the event loop that kvd takes with this Python."""
    try:
        return f"uvloop {version('uvloop')}"
    except PackageNotFoundError:
        return "asyncio"


def _is_below(pid: int, top: int, parents: dict[int, int]) -> bool:
    while pid not in (top, 0):
        pid = parents.get(pid, 0)
    return pid == top


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended meanwhile
        return ""
