"""From the write of a key until its watchers know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.watchers import Watchers

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.servers import Server


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("kind", ["long poll", "stream"])
def test_watch(benchmark: BenchmarkFixture, server: Server, kind: str, count: int) -> None:
    """A PUT until the last watcher has read the event; the PUT's own answer is not in it."""
    benchmark.group = f"PUT to the last of {count} watchers told, {kind}"
    with Watchers(server.address, count, stream=kind == "stream") as watchers:
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            watchers.tell, setup=watchers.prepare, rounds=200 if count == 1 else 20, warmup_rounds=2
        )
