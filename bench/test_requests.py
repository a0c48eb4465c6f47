"""One request on one connection, and what 64 connections get done together."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

import pytest

from bench.load.closed_loop import drive
from bench.load.keyspace import Keyspace
from bench.load.wire import Client, render
from bench.load.workloads import (
    WORKLOADS,
    Lane,
    Script,
    clear,
    listed_values,
    preload_script,
    succeeded,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from bench.load.servers import Server
    from bench.load.workloads import Expected

KEYS = 1000
VALUE_BYTES = 100
REQUESTS_PER_ROUND = 4096


@pytest.fixture
def space(server: Server) -> Iterator[Keyspace]:
    """A thousand keys that hold value 0."""
    made = Keyspace.make("suite", keys=KEYS, value_bytes=VALUE_BYTES, seed=1)
    clear(server.address, made)
    drive(server.address, [preload_script(Lane(made, 0, 1, {}), b"")])
    yield made
    clear(server.address, made)


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """One keep-alive connection."""
    with Client(server.address) as connected:
        yield connected


@pytest.mark.benchmark(group="GET, one connection")
def test_get(benchmark: BenchmarkFixture, client: Client, space: Keyspace) -> None:
    """A read, from the first byte sent to the last received."""
    request = render("GET", space.path(1))
    answer: bytes = benchmark(client.exchange, request)
    assert space.value(0) in answer


@pytest.mark.benchmark(group="PUT, one connection")
def test_put(benchmark: BenchmarkFixture, client: Client, space: Keyspace) -> None:
    """An overwrite, durable when it is answered."""
    numbers = count(1)

    def put() -> bytes:
        return client.exchange(render("PUT", space.path(1), b"value=" + space.value(next(numbers))))

    answer: bytes = benchmark(put)
    assert succeeded(answer)
    assert space.value(next(numbers) - 1) in client.exchange(render("GET", space.path(1)))


@pytest.mark.benchmark(group="CAS, one connection")
def test_compare_and_swap(benchmark: BenchmarkFixture, client: Client, space: Keyspace) -> None:
    """An overwrite on condition of the value before."""
    numbers = count(1)

    def swap() -> bytes:
        number = next(numbers)
        body = b"prevValue=%b&value=%b" % (space.value(number - 1), space.value(number))
        return client.exchange(render("PUT", space.path(1), body))

    # Each swap names the value of the one before: the last succeeds only when all did.
    answer: bytes = benchmark(swap)
    assert succeeded(answer)


@pytest.mark.benchmark(group="listing of 1,000 keys, one connection")
def test_list(benchmark: BenchmarkFixture, client: Client, space: Keyspace) -> None:
    """A listing, its values included."""
    answer: bytes = benchmark(client.exchange, render("GET", space.directory))
    assert listed_values(answer) == [space.value(0)] * KEYS


@pytest.mark.parametrize("workload", ["get", "put", "cas", "post", "mixed"])
def test_64_connections(
    benchmark: BenchmarkFixture, server: Server, space: Keyspace, workload: str
) -> None:
    """Throughput of 64 busy connections: divide `requests_per_round` by the time for a rate."""
    benchmark.group = f"{workload}, {REQUESTS_PER_ROUND} requests by 64 connections"
    benchmark.extra_info["requests_per_round"] = REQUESTS_PER_ROUND
    # In-order keys need directories, which no other workload has made.
    used = replace(space, name=f"{space.name}/queues") if workload == "post" else space
    # What the keys hold outlives the round, and with it what the next round's scripts expect.
    expected: Expected = dict.fromkeys(range(KEYS), space.value(0))

    def make_scripts() -> tuple[tuple[list[Script]], dict[str, object]]:
        lanes = [Lane(used, lane, 64, expected) for lane in range(64)]
        scripts = [WORKLOADS[workload].script(lane) for lane in lanes]
        return ([first(script, REQUESTS_PER_ROUND // 64) for script in scripts],), {}

    figures = benchmark.pedantic(  # type: ignore[no-untyped-call]
        partial(drive, server.address), setup=make_scripts, rounds=10, warmup_rounds=1
    )
    assert figures.errors == 0


def first(script: Script, requests: int) -> Script:
    """Let a script make only so many requests."""
    request = next(script)
    for _ in range(requests):
        answer = yield request
        request = script.send(answer)
