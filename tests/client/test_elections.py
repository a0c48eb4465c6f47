"""kvd/client/recipes: one leader at a time, with a value that all can see."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from kvd.client import AsyncClient, Client, WatchTimeout
from kvd.recipes import LockLost
from tests.support.server import PATIENCE_S


@pytest.fixture
def kvd(server) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def name(request) -> str:
    return f"/leaders/{request.node.name}"


def test_the_leader_is_seen_by_all_and_replaced(kvd, server, name):
    election = kvd.election(name)
    leads = threading.Event()
    ends = threading.Event()

    def follow_up() -> None:
        with Client(server.url) as client, client.election(name).campaign("second"):
            leads.set()
            ends.wait(PATIENCE_S)

    with election.observe() as leaders:
        assert next(leaders) is None
        with election.campaign("first") as held:
            assert next(leaders) == "first"
            second = threading.Thread(target=follow_up)
            second.start()
            with election.observe(timeout=0.1) as others:
                assert next(others) == "first"
                # A candidate that waits changes nothing.
                while len(kvd.ls(name)) < 2:
                    pass
                with pytest.raises(WatchTimeout):
                    next(others)
            assert not leads.is_set()
            fence = held.fence
        assert next(leaders) == "second"
        assert leads.wait(PATIENCE_S)
        assert min(node.created_index for node in kvd.ls(name)) > fence
        ends.set()
        assert next(leaders) is None
        second.join(PATIENCE_S)


def test_tasks_campaign_too(server, name):
    async def run() -> list[str | None]:
        seen: list[str | None] = []
        async with AsyncClient(server.url) as client:
            election = client.election(name)
            async with election.observe() as leaders:
                seen.append(await anext(leaders))
                for value in ("", "näïve"):
                    async with election.campaign(value):
                        seen.append(await anext(leaders))
                    seen.append(await anext(leaders))
        return seen

    assert asyncio.run(run()) == [None, "", None, "näïve", None]


def test_a_leader_that_is_removed_is_notified(kvd, name):
    received = threading.Event()
    election = kvd.election(name, ttl=3, on_lost=received.set)
    with election.campaign("me") as held:
        kvd.delete(held.key)
        assert received.wait(PATIENCE_S)
        with pytest.raises(LockLost):
            held.check()


def test_entries_of_other_programs_are_shown_as_they_are(kvd, name):
    kvd.append(name, "theirs")
    kvd.set(f"{name}/deep/er", "no entry")
    with kvd.election(name).observe() as leaders:
        assert next(leaders) == "theirs"
        kvd.append(name, "a candidate")
        kvd.delete(name, recursive=True)
        assert next(leaders) is None


def test_an_observation_ends_when_it_is_closed(kvd, server, name):
    leaders = kvd.election(name).observe()
    assert next(leaders) is None
    waiter = threading.Thread(target=lambda: list(leaders))
    waiter.start()
    server.wait_for_watchers(1)
    leaders.close()
    waiter.join(PATIENCE_S)
    assert not waiter.is_alive()
    assert list(leaders) == []
