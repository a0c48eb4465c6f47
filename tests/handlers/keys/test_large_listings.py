"""Large listings: rendered by turns, one in a turn, and known to be large the next time."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from kvd.core.stats import StoreStats
from kvd.handlers.keys.large_listings import LargeListings
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.limits.memory_budget import MemoryBudget, Values
from kvd.storage.store import Store
from kvd.v2.commands import Delete, Get, Set
from tests.support.stores import NOW_NS, open_store, write

DIRECTORIES = 3000


class Client:
    """A connection that is answered in pieces."""

    gone = False

    def __init__(self):
        self.body = None

    def respond_in_pieces(self, status, head, pieces):
        self.body = b"".join(piece.data for piece in pieces)

    def abort(self):
        pass


class Watched:
    """A store that notes in which turns of the loop which of its listings goes on."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.turn = 0
        self.seen: list[tuple[int, int]] = []
        self.views = 0

    @property
    def applied(self):
        return self.store.applied

    @contextmanager
    def long_view(self):
        self.views += 1
        number = self.views
        with self.store.long_view() as view:

            def children(dir_id):
                self.seen.append((self.turn, number))
                return view.children(dir_id)

            yield SimpleNamespace(find=view.find, children=children)

    async def count_turns(self):
        while True:
            await asyncio.sleep(0)
            self.turn += 1


@pytest.fixture
def watched(tmp_path) -> Iterator[Watched]:
    store = open_store(tmp_path / "data", segment_bytes_max=1 << 22)
    for name in (b"/a", b"/b", b"/c", b"/d"):
        write(store, *(Set(b"%b/%d/k" % (name, n), b"v") for n in range(DIRECTORIES)))
    yield Watched(store)
    store.close()


def made(watched: Watched, slices: asyncio.Lock) -> LargeListings:
    memory = MemoryBudget(1 << 28)

    def refuse(connection, method, refusal):
        raise refusal

    return LargeListings(
        store=watched,
        stats=StoreStats(),
        now=lambda: (NOW_NS, False),
        kept=ListingCache(),
        memory=memory,
        values=Values(memory),
        head=lambda index: b"",
        refuse=refuse,
        slow_s=1000.0,
        slices=slices,
    )


def test_in_a_turn_only_one_goes_on(watched):
    async def run():
        large = made(watched, asyncio.Lock())
        clients = {name: Client() for name in (b"/a", b"/b", b"/c", b"/d")}
        counting = asyncio.get_running_loop().create_task(watched.count_turns())
        jobs = [large.join(client, "GET", Get(name, True)) for name, client in clients.items()]
        await asyncio.gather(*map(large.run, jobs))
        counting.cancel()
        for client in clients.values():
            assert len(json.loads(client.body)["node"]["nodes"]) == DIRECTORIES

    asyncio.run(run())
    by_turn: dict[int, set[int]] = {}
    for turn, number in watched.seen:
        by_turn.setdefault(turn, set()).add(number)
    assert len(by_turn) > 4
    assert all(len(numbers) == 1 for numbers in by_turn.values())


def test_it_waits_for_what_else_takes_long(watched):
    async def run():
        slices = asyncio.Lock()
        large = made(watched, slices)
        job = large.join(Client(), "GET", Get(b"/a", True))
        async with slices:
            task = asyncio.get_running_loop().create_task(large.run(job))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not watched.seen
        await task
        assert watched.seen

    asyncio.run(run())


def test_it_is_known_to_be_large_until_it_is_small(watched):
    async def run():
        large = made(watched, asyncio.Lock())
        tree = Get(b"/a", True)
        assert not large.has_been_large(tree)
        await large.run(large.join(Client(), "GET", tree))
        assert large.has_been_large(tree)
        assert not large.has_been_large(Get(b"/a"))
        assert not large.has_been_large(Get(b"/b", True))
        write(watched.store, *(Delete(b"/a/%d" % n, True, True) for n in range(1, DIRECTORIES)))
        await large.run(large.join(Client(), "GET", tree))
        assert not large.has_been_large(tree)

    asyncio.run(run())
