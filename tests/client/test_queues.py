"""kvd/client/recipes: items of a queue are handed out in order, and each at least once."""

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Iterator

import pytest

from kvd.client import AsyncClient, Client
from kvd.client.sockets import Driver
from kvd.client.wire import Send, Step
from kvd.recipes import LockLost, Queue, QueueEmpty
from tests.client.conftest import Interrupted
from tests.support.forgetful import Forgetful
from tests.support.server import PATIENCE_S, Server, running


@pytest.fixture(params=["kvd", "etcd"])
def url(request, server, plain) -> str:
    """A server with transactions and pages, and one without."""
    return server.url if request.param == "kvd" else plain.url


@pytest.fixture
def kvd(url) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    yield from running(Server(tmp_path_factory.mktemp("plain"), "--extras=false"))


@pytest.fixture
def name(request) -> str:
    return f"/queues/{request.node.name}"


def left(client: Client, name: str) -> list[str]:
    """All keys of a queue, claims too."""
    keys = [node.key for node in client.ls(name)]
    try:
        return keys + [node.key for node in client.ls(f"{name}/_claims")]
    except KeyError:
        return keys


def test_items_come_in_order_and_go(kvd, name):
    queue = kvd.queue(name)
    assert is_empty(queue)
    ids = [queue.put(str(number)) for number in range(3)]
    assert len(set(ids)) == 3
    for number in range(3):
        with queue.take(timeout=PATIENCE_S) as item:
            assert (item.value, item.id) == (str(number), ids[number])
            assert not item.lost.is_set()
            item.check()
    assert is_empty(queue)
    assert left(kvd, name) == []


def is_empty(queue: Queue) -> bool:
    try:
        with queue.take(timeout=0):
            return False
    except QueueEmpty:
        return True


def test_two_takers_share_the_items(kvd, name):
    queue = kvd.queue(name)
    for number in range(10):
        queue.put(str(number))
    with queue.take() as first, queue.take() as second:
        assert (first.value, second.value) == ("0", "1")
        assert len(left(kvd, name)) == 12
    rest = []
    for _ in range(8):
        with queue.take() as item:
            rest.append(item.value)
    assert rest == [str(number) for number in range(2, 10)]
    assert left(kvd, name) == []


def test_a_waiter_gets_what_is_put(kvd, name):
    taken: list[str] = []

    def take() -> None:
        with kvd.queue(name).take(timeout=PATIENCE_S) as item:
            taken.append(item.value)

    takers = [threading.Thread(target=take) for _ in range(3)]
    for taker in takers:
        taker.start()
    for number in range(3):
        kvd.queue(name).put(str(number))
    for taker in takers:
        taker.join(PATIENCE_S)
    assert sorted(taken) == ["0", "1", "2"]
    assert left(kvd, name) == []


def test_an_item_whose_handling_failed_comes_again(kvd, name):
    queue = kvd.queue(name, ttl=3)
    received = queue.put("poison", id="order-7")
    with pytest.raises(ZeroDivisionError), queue.take() as item:
        _ = 1 / 0
    assert is_empty(queue)
    # Not before the TTL of its claim is over.
    with queue.take(timeout=PATIENCE_S) as again:
        assert (again.id, again.key) == ("order-7", item.key)
    assert received == "order-7"
    assert left(kvd, name) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_item_whose_handling_was_interrupted_comes_again_at_once(kvd, name, error):
    queue = kvd.queue(name, ttl=60)
    queue.put("1")
    with pytest.raises(error), queue.take() as item:
        raise error
    with queue.take(timeout=0) as again:
        assert again.key == item.key


def proxied(url: str, name: str, instead: Callable[[], object]) -> Forgetful:
    """A server that does something instead of the response to the first claim of an item."""
    port = int(url.rpartition(":")[2])
    return Forgetful(port, instead, f"PUT /v2/keys{name}/_claims/".encode())


def test_an_interrupted_take_leaves_no_claim(kvd, url, name, interrupt):
    name = re.sub(r"\W+", "-", name)
    kvd.queue(f"/{name}").put("1")
    with (
        contextlib.closing(proxied(url, f"/{name}", interrupt)) as proxy,
        Client(proxy.url, timeout=PATIENCE_S) as client,
    ):
        with pytest.raises(Interrupted), client.queue(f"/{name}", ttl=60).take():
            pass
        assert len(left(kvd, f"/{name}")) == 1
        with client.queue(f"/{name}").take(timeout=0) as item:
            assert item.value == "1"


def test_a_cancelled_take_leaves_no_claim(kvd, url, name):
    name = re.sub(r"\W+", "-", name)
    kvd.queue(f"/{name}").put("1")

    async def take(client: AsyncClient, begun: asyncio.Event) -> None:
        async with client.queue(f"/{name}", ttl=60).take():
            begun.set()
            await asyncio.Event().wait()

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        begun = asyncio.Event()
        with contextlib.closing(proxied(url, f"/{name}", cancel)) as proxy:
            async with AsyncClient(proxy.url, timeout=PATIENCE_S) as client:
                task = asyncio.create_task(take(client, begun))
                await asyncio.wait([task])
                assert task.cancelled()
                assert not begun.is_set()
                assert len(left(kvd, f"/{name}")) == 1
                # The same in the body.
                task = asyncio.create_task(take(client, begun))
                await begun.wait()
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled()

    asyncio.run(run())
    assert len(left(kvd, f"/{name}")) == 1


def test_a_taker_that_was_too_slow_is_notified_and_takes_nothing_away(kvd, name):
    queue = kvd.queue(name, ttl=3)
    queue.put("1")

    def take_slowly() -> None:
        with queue.take() as item:
            kvd.delete(f"{name}/_claims", recursive=True)
            with queue.take(timeout=PATIENCE_S) as other:
                assert other.key == item.key
                assert item.lost.wait(PATIENCE_S)
                with pytest.raises(LockLost):
                    item.check()

    with pytest.raises(LockLost, match="handed out again"):
        take_slowly()
    assert left(kvd, name) == []


def test_an_item_that_another_program_has_put_has_the_name_of_its_key(kvd, name):
    for text in ("plain", '{"id": "1"}', "[]"):
        key = kvd.append(name, text).node.key
        with kvd.queue(name).take() as item:
            assert (item.value, item.id) == (text, key.rpartition("/")[2])


def test_an_item_that_was_removed_meanwhile_is_done(kvd, name):
    kvd.queue(name).put("1")
    with kvd.queue(name).take() as item:
        kvd.delete(item.key)
    assert left(kvd, name) == []


def test_a_queue_longer_than_a_page_is_searched_to_its_end(kvd, name, monkeypatch):
    monkeypatch.setattr("kvd.client.recipes.items._PAGE", 2)
    queue = kvd.queue(name)
    for number in range(5):
        queue.put(str(number))
    with queue.take(), queue.take(), queue.take(), queue.take() as fourth:
        assert fourth.value == "3"
        with queue.take() as last:
            assert last.value == "4"
        assert is_empty(queue)


def test_tasks_take_too(kvd, url, name):
    async def run() -> list[str]:
        taken: list[str] = []
        async with AsyncClient(url) as client:
            queue = client.queue(name, ttl=3)

            async def take() -> None:
                async with queue.take() as item:
                    taken.append(item.value)

            tasks = [asyncio.create_task(take()) for _ in range(3)]
            for number in range(3):
                await queue.put(str(number))
            await asyncio.gather(*tasks)
            with pytest.raises(QueueEmpty):
                async with queue.take(timeout=0):
                    pass

            async def lose() -> None:
                async with queue.take() as item:
                    await client.delete(f"{name}/_claims", recursive=True)
                    await asyncio.Event().wait()
                    item.check()

            # A body whose claim is lost is cancelled.
            await queue.put("slow")
            with pytest.raises(LockLost):
                await lose()
            # A cancellation of the program's own goes on.
            async with queue.take() as item:
                assert item.value == "slow"
                task = asyncio.create_task(take())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        return taken

    assert sorted(asyncio.run(run())) == ["0", "1", "2"]
    assert left(kvd, name) == []


class Meddling(Driver):
    """Does something before the first claim is sent."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        super().__init__(None)
        self._meddle: Callable[[], None] | None = meddle

    def _take(self, step: Step, sleep: Callable[[float], object]) -> object:
        if isinstance(step, Send) and b"/_claims/" in step.data and self._meddle is not None:
            meddle, self._meddle = self._meddle, None
            meddle()
        return super()._take(step, sleep)


def test_what_was_handled_since_the_listing_is_not_handed_out(kvd, name):
    kvd.queue(name).put("1")

    def handle() -> None:
        with kvd.queue(name).take() as item:
            assert item.value == "1"

    assert is_empty(Queue(Meddling(handle), kvd._operations, name, 10))
    assert left(kvd, name) == []


def test_an_item_that_another_taker_has_is_not_removed(server, name):
    """Also where the loss was not noticed yet; without transactions it is removed."""
    with Client(server.url) as kvd, contextlib.ExitStack() as stack:
        queue = kvd.queue(name)
        queue.put("1")

        def take() -> None:
            with queue.take():
                kvd.delete(f"{name}/_claims", recursive=True)
                stack.enter_context(queue.take(timeout=PATIENCE_S))

        with pytest.raises(LockLost, match="handed out again"):
            take()
        assert len(left(kvd, name)) == 2
    with Client(server.url) as kvd:
        assert left(kvd, name) == []
