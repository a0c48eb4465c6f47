"""The servers of a comparison: which run while a group of rows is measured, and what they hold.

    plain    one kvd and one etcd, empty; every row clears what it has made
    alone    none: the row starts each server by itself, so that nothing of another row is in it
    million  one kvd and one etcd with the same many keys, loaded over HTTP
    sizes    several kvd, each with another number of keys, made by the engine's bulk load

One group at a time: a server with a million keys is no bystander.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from bench.compare.preloaded import Standing
from bench.compare.rows import Measured
from bench.load import servers, wrk
from bench.load.wire import LoadError
from kvd.storage.tools.bulk_load import bulk_load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.load.servers import Server

VERIFIED_MAX = 1_000_000
"""At the end of a group all keys are compared, of larger stores so many chosen at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The scale of the comparison; its defaults are the sizes that the demands name."""

    rounds: int = 5
    seconds: int = 2
    value_bytes: int = 100
    seed: int = 1
    generator: str = "auto"
    million: int = 1_000_000
    watchers: int = 10_000
    sizes: tuple[int, ...] = (10_000, 1_000_000, 10_000_000)
    events: int = 5
    """Writes of a watched key in a round."""
    snapshot_count: int = 20_000
    """Records after which both servers take a snapshot, where one is wanted."""
    snapshot_s: int = 8
    """How long writers go on in which a snapshot is to be taken."""
    limit_s: float = inf
    """When this is over rows get no further rounds, but each gets one."""


QUICK = Scale(
    rounds=3,
    seconds=1,
    million=20_000,
    watchers=1_000,
    sizes=(10_000, 100_000),
    events=3,
    snapshot_count=2_000,
    snapshot_s=2,
    limit_s=360,
)


class Fleet:
    """Starts the servers of a row's group, and stops those of the group before."""

    def __init__(self, scratch: Path, scale: Scale, report: Callable[[str], None]) -> None:
        self.scratch = scratch
        self.scale = scale
        self.report = report
        self.makers = [servers.kvd]
        if not servers.why_no_etcd():
            self.makers.append(servers.etcd)
        self.loaded: dict[str, Measured] = {}
        """What the servers of the group `million` needed when they had just been loaded."""
        self.group = ""
        """The group of rows whose servers run."""
        self._stack = ExitStack()
        self._plain: list[Server] = []
        self._standing: list[Standing] = []

    @property
    def use_wrk(self) -> bool:
        """Whether wrk drives the loads on standing keys."""
        generator = self.scale.generator
        return generator == "wrk" or (generator == "auto" and wrk.is_installed())

    def close(self) -> None:
        """End all servers."""
        self._plain, self._standing = [], []
        self._stack.close()

    def leave(self) -> None:
        """End the servers of a group, after comparing what keys they were to keep.

        Raises:
            WrongAnswer: a key does not hold what was acknowledged.
        """
        try:
            for each in self._standing:
                keys = min(each.space.keys, VERIFIED_MAX)
                self.report(f"comparing {keys:,} keys of {each.server.name}")
                each.verify_some(keys)
        finally:
            self.close()

    def plain(self) -> list[Server]:
        """Return both servers, empty."""
        if not self._plain:
            self._plain = [self._stack.enter_context(make(self.scratch)) for make in self.makers]
        return self._plain

    def million(self) -> list[Standing]:
        """Return both servers with many keys; loading them takes minutes."""
        if not self._standing:
            loaded = [self._load(make(self.scratch)) for make in self.makers]
            self._standing = loaded
        return self._standing

    def sizes(self) -> list[Standing]:
        """Return a kvd for each size of store, the smallest first."""
        if not self._standing:
            self._standing = [self._made(keys) for keys in self.scale.sizes]
        return self._standing

    def _load(self, server: Server) -> Standing:
        keys = self.scale.million
        self._stack.enter_context(server)
        standing = Standing(server, keys=keys, value_bytes=self.scale.value_bytes)
        started_s = time.monotonic()
        figures = standing.load()
        figures.refuse_errors()
        self.loaded[server.name] = Measured(
            {
                "anonymous_mb": server.anonymous_bytes() / 1e6,
                "load_s": time.monotonic() - started_s,
                "rate": figures.rate,
            }
        )
        self.report(f"loaded {keys:,} keys into {server.name} at {figures.rate:,.0f}/s")
        return standing

    def _made(self, keys: int) -> Standing:
        server = servers.kvd(self.scratch)
        standing = Standing(server, keys=keys, value_bytes=self.scale.value_bytes)
        self._stack.callback(server.stop)  # also removes what there is of the store
        started_s = time.monotonic()
        try:
            bulk_load(server.data, standing.items())
        except OSError as error:
            raise LoadError(f"a store of {keys:,} keys could not be made: {error}") from error
        server.start()
        self.report(f"made a store of {keys:,} keys in {time.monotonic() - started_s:.0f} s")
        return standing
