"""The key space: the cost of a request besides its answer."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import pytest

import kvd
from bench.cost.in_process import Inside
from kvd.storage.format.node import decode_node
from kvd.v2.errors import RAFT_INTERNAL, ApiError
from tests.support.server import Client
from tests.support.waiting import wait_until


@pytest.fixture
def decoded():
    """The calls of `decode_node` on all threads that start during the test."""
    calls = []

    def note(frame, event, _argument):
        if event == "call" and frame.f_code is decode_node.__code__:
            calls.append(frame.f_locals["key"])

    threading.setprofile(note)
    yield calls
    threading.setprofile(None)


@pytest.mark.parametrize("query", ["", "?quorum=true"])
def test_a_listing_decodes_the_row_of_its_directory_once(decoded, tmp_path, query):
    with Inside(tmp_path / "data") as kvd:
        for name in ("a", "b", "c"):
            kvd.request("PUT", f"/v2/keys/d/{name}", b"value=1")
        counts = []
        for _ in ("rendered", "cached"):
            kvd.flush()
            decoded.clear()
            kvd.request("GET", f"/v2/keys/d{query}")
            counts.append(len(decoded))
    assert counts == [1 + 3, 1]


class CatchUp:
    """Lets reads with `quorum` wait for a write that another client makes, or refuses them."""

    def __init__(self, server):
        self.asked = 0
        self.port = urlsplit(server.url).port
        self.refusal = None
        self._server = server
        self._keys = server._server.running.keys
        self._written = asyncio.Event()
        self._keys.catch_up = self

    async def __call__(self):
        self.asked += 1
        if self.refusal is not None:
            raise self.refusal
        await self._written.wait()

    def written(self):
        self._server._loop.call_soon_threadsafe(self._written.set)


@pytest.fixture
def served() -> Iterator[tuple[CatchUp, Client]]:
    with kvd.Server(memory=True) as server:
        catch_up = CatchUp(server)
        with closing(Client(catch_up.port)) as client:
            yield catch_up, client


@pytest.mark.parametrize("more", ["", "&wait=true", "&recursive=true", "&count=true"])
def test_a_read_with_quorum_waits_until_the_state_is_here(served, more):
    catch_up, client = served
    client.put("/d/a", value="1")
    local = f"/v2/keys/d?{more.replace('&wait=true', '')}"
    before = client.request("GET", local).body
    with closing(Client(catch_up.port)) as reader, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(reader.request, "GET", f"/v2/keys/d?quorum=true{more}")
        wait_until(lambda: catch_up.asked)
        client.put("/d/b", value="2")
        assert not reading.done()
        catch_up.written()
        assert reading.result().body == client.request("GET", local).body != before
    assert catch_up.asked == 1


def test_a_read_with_quorum_is_refused_where_the_state_cannot_be_had(served):
    catch_up, client = served
    client.put("/a", value="1")
    catch_up.refusal = ApiError(RAFT_INTERNAL, b"etcdserver: request timed out")
    assert client.get("/a", quorum="true").status == 500
    assert client.get("/a").status == 200
    assert client.request("HEAD", "/v2/keys/a?quorum=true").status == 200
    assert client.get("/none").status == 404
    assert catch_up.asked == 1
