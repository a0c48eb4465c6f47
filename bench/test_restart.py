"""From the start of the process after `kill -9` until it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench.engine import drive
from bench.load import SETUP_CONNECTIONS, lanes_over, read_back
from bench.workloads import Keyspace, clear, compare, preload_script

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.servers import Server
    from bench.workloads import Expected

KEYS = 20_000


@pytest.mark.benchmark(group=f"ready after kill -9 with {KEYS} keys")
def test_restart(benchmark: BenchmarkFixture, server: Server) -> None:
    """Process start to the first answered read; all keys are compared after the last start."""
    space = Keyspace.make("restart", keys=KEYS, value_bytes=100, seed=1)
    expected: Expected = {}
    lanes = lanes_over(space, SETUP_CONNECTIONS, expected)
    drive(server.address, [preload_script(lane, b"") for lane in lanes])
    benchmark.pedantic(  # type: ignore[no-untyped-call]
        server.start, setup=server.kill, rounds=5
    )
    compare(read_back(server.address, space, "put"), expected)
    clear(server.address, space)
