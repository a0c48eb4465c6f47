"""From the write of a key until its watchers know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.watchers import WatchersProcess

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.servers import Server


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("kind", ["long poll", "stream"])
def test_watch(benchmark: BenchmarkFixture, server: Server, kind: str, count: int) -> None:
    """A PUT until it is answered and the last watcher has read the event."""
    benchmark.group = f"PUT to the last of {count} watchers told, {kind}"
    with WatchersProcess(server.address, count, stream=kind == "stream") as watchers:
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            watchers.tell,
            setup=watchers.register,
            rounds=200 if count == 1 else 20,
            warmup_rounds=2,
        )
