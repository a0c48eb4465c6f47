"""kvd/client/recipes: locks that are fair and do not lie, counters that lose nothing, barriers."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from kvd.client import AsyncClient, Client, LockLost, LockTimeout
from tests.client.conftest import Interrupted
from tests.support.forgetful import Forgetful
from tests.support.server import PATIENCE_S, free_port
from tests.support.waiting import wait_until


@pytest.fixture
def kvd(server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def name(request) -> str:
    return f"/locks/{request.node.name}"


def entries(client: Client, name: str) -> int:
    try:
        return len(client.ls(name))
    except KeyError:
        return 0


def test_a_lock_is_given_in_the_order_in_which_it_was_asked_for(kvd, name):
    order: list[tuple[int, int]] = []

    def take(number: int) -> None:
        with kvd.lock(name) as held:
            order.append((number, held.fence))

    with kvd.lock(name) as first:
        waiting = []
        for number in range(3):
            waiting.append(threading.Thread(target=take, args=[number]))
            waiting[-1].start()
            wait_until(lambda: entries(kvd, name) == len(waiting) + 1)
        assert order == []
        first.check()
    for thread in waiting:
        thread.join(PATIENCE_S)
    assert [number for number, _ in order] == [0, 1, 2]
    fences = [first.fence, *(fence for _, fence in order)]
    assert fences == sorted(set(fences))
    assert entries(kvd, name) == 0


def test_two_never_hold_it_at_once(server, name):
    holders: list[int] = []
    most = 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal most
        with Client(server.url) as client:
            for _ in range(8):
                with client.lock(name) as held:
                    with guard:
                        holders.append(held.fence)
                        most = max(most, len(holders))
                    client.set(f"{name}-register", str(held.fence))
                    with guard:
                        holders.remove(held.fence)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert most == 1


def test_a_lock_that_is_not_free_in_time_leaves_no_entry(kvd, name):
    with kvd.lock(name):
        other = kvd.lock(name)
        with pytest.raises(LockTimeout):
            other.acquire(timeout=0.1)
        assert entries(kvd, name) == 1
    assert other.acquire(timeout=PATIENCE_S).fence
    other.release()


def test_changes_of_the_entry_before_prolong_no_timeout(kvd, server, name):
    ended = threading.Event()
    with kvd.lock(name) as held:

        def change() -> None:
            with Client(server.url) as other:
                while not ended.is_set():
                    other.set(held.key, "changed")

        changer = threading.Thread(target=change, daemon=True)
        changer.start()
        with pytest.raises(LockTimeout):
            kvd.lock(name).acquire(timeout=0.2)
        ended.set()
        changer.join(PATIENCE_S)


def test_a_holder_that_has_lost_the_lock_is_notified(kvd, name):
    received = threading.Event()
    with kvd.lock(name, ttl=3, on_lost=received.set) as held:
        kvd.delete(held.key)
        assert received.wait(PATIENCE_S)
        assert held.lost.is_set()
        with pytest.raises(LockLost):
            held.check()
    # Another one's entry is left alone.
    assert entries(kvd, name) == 0


def test_a_waiter_that_is_removed_stops_waiting(kvd, name):
    with kvd.lock(name, ttl=3) as held:
        failures: list[BaseException] = []

        def wait() -> None:
            try:
                kvd.lock(name, ttl=3).acquire()
            except LockLost as error:
                failures.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        wait_until(lambda: entries(kvd, name) == 2)
        (other,) = [node.key for node in kvd.ls(name) if node.key != held.key]
        kvd.delete(other)
        waiter.join(PATIENCE_S)
        assert len(failures) == 1


def test_a_lock_outlives_a_kill(make_server, name):
    server = make_server(listen=f"http://127.0.0.1:{free_port()}").start()
    with Client(server.url) as client, client.lock(name, ttl=60) as held:
        server.kill()
        server.start()
        assert client.get(held.key).created_index == held.fence
        held.check()


def test_a_lock_does_not_outlive_its_ttl_without_a_server(make_server, name):
    server = make_server().start()
    with Client(server.url, timeout=1) as client, client.lock(name, ttl=3) as held:
        server.kill()
        assert held.lost.wait(PATIENCE_S)
        with pytest.raises(LockLost):
            held.check()


def test_a_lock_on_a_silent_server_times_out(name):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Client(url, timeout=0.5) as client, pytest.raises(LockTimeout):
            client.lock(name).acquire(timeout=0.2)


def test_an_entry_of_which_nothing_was_heard_is_found_again(server, kvd, name):
    with contextlib.closing(Forgetful(server.port)) as proxy, Client(proxy.url) as client:
        with client.lock(name) as held:
            held.check()
            assert [node.key for node in kvd.ls(name)] == [held.key]
        assert entries(kvd, name) == 0


def test_an_interrupted_attempt_leaves_no_entry(server, kvd, name, interrupt):
    with (
        contextlib.closing(Forgetful(server.port, interrupt)) as proxy,
        Client(proxy.url, timeout=PATIENCE_S) as client,
    ):
        with pytest.raises(Interrupted):
            client.lock(name, ttl=60).acquire()
        assert entries(kvd, name) == 0


def test_a_cancelled_attempt_leaves_no_entry(server, kvd, name):
    async def run() -> None:
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        with contextlib.closing(Forgetful(server.port, cancel)) as proxy:
            async with AsyncClient(proxy.url, timeout=PATIENCE_S) as client:
                task = asyncio.create_task(client.lock(name, ttl=60).acquire())
                await asyncio.wait([task])
                assert task.cancelled()

    asyncio.run(run())
    assert entries(kvd, name) == 0


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("recipe", ["lock", "election", "queue"])
def test_a_short_ttl_is_refused(client, recipe):
    with pytest.raises(ValueError, match="3 s or more, got 2"):
        getattr(client("http://nowhere"), recipe)("/l", ttl=2)


def test_the_body_is_cancelled_when_its_lock_is_lost(server, name):
    async def run() -> str:
        async with AsyncClient(server.url) as client:
            try:
                async with client.lock(name, ttl=3) as held:
                    await client.delete(held.key)
                    await asyncio.Event().wait()
            except LockLost:
                return "lost"
        return "held"

    assert asyncio.run(run()) == "lost"


def test_tasks_wait_for_a_lock_too(server, kvd, name):
    async def run() -> list[int]:
        order: list[int] = []
        async with AsyncClient(server.url) as client:

            async def take(number: int) -> None:
                async with client.lock(name):
                    order.append(number)

            async with client.lock(name) as held:
                tasks = []
                for number in range(3):
                    tasks.append(asyncio.create_task(take(number)))
                    while len(await client.ls(name)) < number + 2:
                        await asyncio.sleep(0)
                with pytest.raises(LockTimeout):
                    await client.lock(name).acquire(timeout=0.1)
                held.check()
                assert order == []
            await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == [0, 1, 2]
    assert entries(kvd, name) == 0


def test_a_counter_counts_what_all_add(server, name):
    def add() -> None:
        with Client(server.url) as client:
            for _ in range(20):
                client.counter(name).add(2)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    with Client(server.url) as client:
        assert client.counter(name).value == 160
        assert client.counter(f"{name}-none").value == 0

    async def on_a_loop() -> tuple[int, int]:
        async with AsyncClient(server.url) as client:
            counter = client.counter(name)
            return await counter.add(), await counter.value()

    assert asyncio.run(on_a_loop()) == (161, 161)


def test_a_barrier_holds_until_it_is_lifted(server, kvd, name):
    barrier = kvd.barrier(name)
    barrier.wait()
    barrier.close()
    through = threading.Event()
    waiter = threading.Thread(target=lambda: (barrier.wait(), through.set()))
    before = kvd.get(name).index
    waiter.start()
    server.wait_for_watchers(1)
    kvd.set(name, "still")
    assert kvd.get(name).index > before
    assert not through.is_set()
    barrier.lift()
    assert through.wait(PATIENCE_S)
    barrier.lift()

    async def on_a_loop() -> None:
        async with AsyncClient(server.url) as client:
            other = client.barrier(name)
            async with other:
                task = asyncio.create_task(other.wait())
                await asyncio.sleep(0)
                assert not task.done()
            await task

    asyncio.run(on_a_loop())
