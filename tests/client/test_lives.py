"""kvd/client over forks, several event loops, and ends: what belongs to which, and what is left."""

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

from kvd.client import AsyncClient, Client, HistoryLost, LockLost
from kvd.client.recipes.lease import Lease
from tests.support.server import PATIENCE_S, ROOT

FORKING = """\
import os, sys
from kvd.client import Client, LockLost

def child():
    try:
        held.check()
        return "the child holds its parent's lock"
    except LockLost:
        pass
    lock.release()
    if [next(watch).node.value for _ in range(2)] != ["1", "2"]:
        return "the child misses events"
    watch.close()
    client.close()
    return client.get("/forked/key").value

with Client(sys.argv[1], timeout=30) as client:
    lock = client.lock("/forked/lock", ttl=60)
    held = lock.acquire()
    index = client.set("/forked/key", "0").index
    watch = client.watch("/forked/key", since=index, timeout=30)
    next(watch)  # its stream is open: the next events wait in the socket
    for value in ("1", "2"):
        client.set("/forked/key", value)
    kept = client._operations.exchanges._idle
    ours = [one for idle in kept.values() for one in idle]
    pid = os.fork()
    if pid == 0:
        told = "an error"
        try:
            told = child()
        finally:
            print(told, flush=True)
            os._exit(0)
    os.waitpid(pid, 0)
    held.check()
    assert [next(watch).node.value for _ in range(2)] == ["1", "2"]
    assert client.exists(held.key)
    assert not any(one.is_stale() for one in ours)
    print("parent", flush=True)
"""


def test_what_a_fork_has_copied_belongs_to_the_parent(server):
    """Its lock, its place in a watch, and its connections."""
    ended = subprocess.run(
        [sys.executable, "-c", FORKING, server.url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.stdout.split("\n"), ended.stderr) == (["2", "parent", ""], "")


def test_a_client_serves_one_event_loop_after_the_other(server):
    client = AsyncClient(server.url)

    async def write() -> int:
        return (await client.set("/loops", "1")).index

    with warnings.catch_warnings():
        # The connections that the loops have left open.
        warnings.simplefilter("ignore", ResourceWarning)
        first = asyncio.run(write())
        assert asyncio.run(write()) > first
        client.close()
        gc.collect()


def test_a_client_that_is_closed_keeps_no_connection(connect, server):
    kvd = connect(server.url)
    kvd.set("/k", "1")
    kvd.close()
    assert kvd.get("/k").value == "1"
    wrapped = getattr(kvd, "_wrapped", kvd)
    assert not any(wrapped._operations.exchanges._idle.values())


def test_a_lock_whose_refreshes_fail_for_any_reason_is_lost(server, monkeypatch):
    def fail(_: Lease) -> Any:
        raise ValueError("a fault in the program")

    monkeypatch.setattr(Lease, "refresh", fail)
    received = threading.Event()
    with (
        Client(server.url) as client,
        client.lock("/locks/any", ttl=3, on_lost=received.set) as held,
    ):
        assert held.lost.wait(PATIENCE_S)
        assert received.wait(PATIENCE_S)

    async def hold() -> None:
        async with AsyncClient(server.url) as client, client.lock("/locks/any2", ttl=3):
            await asyncio.Event().wait()

    with pytest.raises(LockLost):
        asyncio.run(hold())


def test_a_callback_that_fails_keeps_no_body_alive(server):
    failed: list[object] = []

    def fail() -> None:
        raise ZeroDivisionError

    async def hold() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, received: failed.append(received["exception"]))
        async with (
            AsyncClient(server.url) as client,
            client.lock("/locks/callback", ttl=3, on_lost=fail) as held,
        ):
            await client.delete(held.key)
            await asyncio.Event().wait()

    with pytest.raises(LockLost):
        asyncio.run(hold())
    assert [type(one) for one in failed] == [ZeroDivisionError]


def test_a_cancellation_during_a_release_is_not_lost(server):
    async def run() -> None:
        async with AsyncClient(server.url) as client:
            lock = client.lock("/locks/release", ttl=3)
            await lock.acquire()
            task = asyncio.create_task(lock.release())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    asyncio.run(run())


def test_an_outcome_without_a_reader_is_no_fault(make_server):
    """A watch fails after its reader was cancelled, and is closed."""
    server = make_server("--event-history-limit=100").start()
    with Client(server.url) as client:
        for number in range(150):
            client.set("/k", str(number))
    received: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, one: received.append(one))
        async with AsyncClient(server.url) as client:
            watch = client.watch("/k", since=2)
            reader = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            reader.cancel()
            inner = watch._task
            assert inner is not None
            await asyncio.wait([reader, inner])
            watch.close()
        assert isinstance(inner.exception(), HistoryLost)

    asyncio.run(run())
    gc.collect()
    assert received == []


def test_threads_that_cannot_be_started_leave_no_entry(server, monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Client(server.url) as client:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            client.lock("/locks/threads", ttl=60).acquire()
        assert len(client.ls("/locks/threads")) == 0
