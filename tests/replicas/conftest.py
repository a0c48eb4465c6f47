"""Engines for the tests of their contract: in memory, in an etcd of one member, in a PostgreSQL."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kvd.replicas.engine import Access, Engine
from kvd.replicas.etcd import url as etcd_url
from kvd.replicas.etcd.log import EtcdLog
from kvd.replicas.postgres import url as postgres_url
from kvd.replicas.postgres.log import PostgresLog
from tests.support import simulated_loop
from tests.support.etcd import Etcd
from tests.support.memory_engine import Faults, MemoryEngine, MemoryLog
from tests.support.postgres import DATABASE, USER, Postgres
from tests.support.tcp_proxy import TcpProxy

NUMBERS = count()


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


class ServerPlace:
    """A log of its own in a server that other tests use as well."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = next(NUMBERS)
        self._engines: list[EtcdLog | PostgresLog] = []
        self._proxies: list[TcpProxy] = []

    def make(self, port: int) -> EtcdLog | PostgresLog:
        raise NotImplementedError

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

    def engine(self, port: int = 0) -> EtcdLog | PostgresLog:
        self._engines.append(self.make(port or self._port))
        return self._engines[-1]

    async def faulty(self) -> tuple[Engine, TcpProxy]:
        proxy = await TcpProxy(self._port).start()
        self._proxies.append(proxy)
        return self.engine(proxy.port), proxy


class EtcdPlace(ServerPlace):
    """A prefix of an etcd."""

    def make(self, port: int) -> EtcdLog:
        return EtcdLog(etcd_url.parse(f"etcd://127.0.0.1:{port}/test/{self._number}"))


class PostgresPlace(ServerPlace):
    """A schema of a PostgreSQL."""

    def make(self, port: int) -> PostgresLog:
        place = f"{DATABASE}?schema=test_{self._number}"
        url = postgres_url.parse(f"postgres://127.0.0.1:{port}/{place}")
        return PostgresLog(url, Access(USER), lease_s=600)


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """An etcd of one member for all tests of this folder."""
    etcd = Etcd(tmp_path_factory.mktemp("etcd") / "data").start()
    yield etcd
    etcd.stop()


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[Postgres]:
    """A PostgreSQL for all tests of this folder."""
    postgres = Postgres()
    try:
        yield postgres.make().start()
    finally:
        postgres.remove()


Place = MemoryPlace | EtcdPlace | PostgresPlace


@pytest.fixture(params=["memory", "etcd", "postgres"])
def place(request: pytest.FixtureRequest) -> Place:
    """Where the engines of a test have their log."""
    if request.param == "memory":
        return MemoryPlace()
    if request.param == "etcd":
        return EtcdPlace(request.getfixturevalue("shared_etcd").port)
    return PostgresPlace(request.getfixturevalue("shared_postgres").port)


@pytest.fixture
def directory(tmp_path: Path) -> Callable[[str], Path]:
    """Makes directories."""

    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        return tmp_path / name

    return make
