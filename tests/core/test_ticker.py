"""The work of every second goes on after a failure."""

import asyncio
import logging

import lmdb
import pytest

from kvd.config import load
from kvd.core.ticker import Ticker
from kvd.handlers.keys.key_space import KeySpace
from kvd.http.server import HttpServer
from kvd.server import KvdServer
from tests.support.server import PATIENCE_S

SOON_S = 0.001


def broken():
    raise ZeroDivisionError("a bug")


async def ticked(times, **functions):
    """Run a ticker until it has come round so many times; what it gave to `on_damage`."""
    enough = asyncio.Event()
    left = iter(range(times - 1, -1, -1))
    damage = []
    all_ = {**functions, "counter": lambda: enough.set() if next(left, 0) == 0 else None}
    ticker = Ticker(asyncio.get_running_loop(), SOON_S, all_, damage.append)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await enough.wait()
    finally:
        ticker.stop()
    return damage


def test_a_function_that_fails_keeps_no_other_from_being_called_again(caplog):
    before, behind = [], []
    asyncio.run(
        ticked(
            3,
            before=lambda: before.append(1),
            broken=broken,
            behind=lambda: behind.append(1),
        )
    )
    assert len(before) == len(behind) == 3


def test_a_function_that_fails_each_time_is_logged_once_in_a_while(caplog):
    asyncio.run(ticked(5, broken=broken, other=broken))
    assert [record.getMessage() for record in caplog.records] == [
        "the tick of the broken failed",
        "the tick of the other failed",
    ]
    assert all(record.exc_info for record in caplog.records)


def test_damage_to_the_index_is_handed_on_and_not_logged_here(caplog):
    error = lmdb.CorruptedError("rotten")

    def damaged():
        raise error

    assert asyncio.run(ticked(1, damaged=damaged)) == [error]
    assert not caplog.records


def test_one_that_is_stopped_calls_nothing_any_more():
    calls = []

    async def scenario():
        ticker = Ticker(asyncio.get_running_loop(), 0.0, {"x": lambda: calls.append(1)}, broken)
        ticker.stop()
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert calls == [1]  # the one at once


@pytest.mark.parametrize("failing", [KeySpace, HttpServer])
def test_a_server_goes_on_ticking_after_an_exception(tmp_path, monkeypatch, caplog, failing):
    """Both the connections of clients and those of monitoring."""
    calls: dict[object, int] = {}
    again = asyncio.Event()
    tick = failing.tick

    def fail_first(self):
        calls[self] = calls.get(self, 0) + 1
        if calls[self] == 1:
            raise ZeroDivisionError("a bug")
        if list(calls.values()).count(1) == 0:
            again.set()
        tick(self)

    monkeypatch.setattr(failing, "tick", fail_first)
    flags = ["--data-dir", str(tmp_path / "data"), "--listen-client-urls", "http://127.0.0.1:0"]
    parsed = load.parse(flags)
    assert isinstance(parsed, load.Config)

    async def scenario():
        server = KvdServer(parsed)
        await server.start()
        async with asyncio.timeout(PATIENCE_S):
            await again.wait()
        await server.stop()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert len(calls) == (2 if failing is HttpServer else 1)
    assert len([r for r in caplog.records if r.exc_info]) == len(calls)
