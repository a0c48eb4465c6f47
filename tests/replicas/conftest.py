"""Engines for the tests of their contract: in memory, and in an etcd of one member."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvd.replicas.engine import Engine
from kvd.replicas.etcd.log import EtcdLog
from kvd.replicas.etcd.url import parse
from tests.support import simulated_loop
from tests.support.etcd import Etcd
from tests.support.memory_engine import Faults, MemoryEngine, MemoryLog
from tests.support.tcp_proxy import TcpProxy

PREFIXES = count()


class MemoryPlace:
    """A log in memory."""

    def __init__(self) -> None:
        self.log = MemoryLog(Random(1))

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(600):
                await main

        simulated_loop.run(bounded())

    def engine(self) -> Engine:
        return MemoryEngine(self.log)

    async def faulty(self) -> tuple[Engine, Faults]:
        faults = Faults(self.log)
        return MemoryEngine(self.log, faults), faults


class EtcdPlace:
    """A log of its own in an etcd that other tests use as well."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._prefix = f"test/{next(PREFIXES)}"
        self._engines: list[EtcdLog] = []
        self._proxies: list[TcpProxy] = []

    def run(self, main: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(60):
                    await main
            finally:
                for engine in self._engines:
                    await engine.close()
                for proxy in self._proxies:
                    await proxy.stop()

        asyncio.run(bounded())

    def engine(self, port: int = 0) -> EtcdLog:
        url = parse(f"etcd://127.0.0.1:{port or self._port}/{self._prefix}")
        self._engines.append(EtcdLog(url))
        return self._engines[-1]

    async def faulty(self) -> tuple[Engine, TcpProxy]:
        proxy = await TcpProxy(self._port).start()
        self._proxies.append(proxy)
        return self.engine(proxy.port), proxy


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd of one member for all tests of this folder."""
    etcd = Etcd(tmp_path_factory.mktemp("etcd") / "data").start()
    yield etcd
    etcd.stop()


Place = MemoryPlace | EtcdPlace


@pytest.fixture(params=["memory", "etcd"])
def place(request: pytest.FixtureRequest) -> Place:
    """Where the engines of a test have their log."""
    if request.param == "memory":
        return MemoryPlace()
    return EtcdPlace(request.getfixturevalue("shared_etcd").port)


@pytest.fixture
def directory(tmp_path: Path) -> Callable[[str], Path]:
    """Makes directories."""

    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make
