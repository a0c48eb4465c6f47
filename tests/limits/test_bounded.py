"""Caches are bounded by the memory that they take, measured."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from kvd.handlers.keys.listing import render
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.handlers.keys.value_cache import ValueCache
from kvd.handlers.passwords import AUTHORIZATION_BYTES_MAX, read_basic
from kvd.http.parsing.header_cache import HeaderCache
from kvd.limits.bounded import OVERHEAD_BYTES, Bounded
from kvd.storage.format.node import ROOT
from kvd.storage.format.records import Change, Kind
from kvd.v2.commands import Set
from tests.monitoring.test_metrics import scrape
from tests.support.guarded import ask_for_users
from tests.support.raw import Raw, request
from tests.support.stores import NOW_NS, open_store, write
from tests.support.waiting import wait_until

MIB = 1 << 20


def taken(fill: Callable[[], object]) -> int:
    """How many bytes something keeps."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = fill()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept is not None
    return after - before


def test_what_finds_no_room_drops_the_others():
    cache: Bounded[str, str] = Bounded(10 * (OVERHEAD_BYTES + 100))
    for number in range(10):
        cache.keep(str(number), "value", 100)
    assert len(cache.kept) == 10
    cache.keep("0", "other", 100)
    assert (len(cache.kept), cache.kept["0"]) == (10, "other")
    cache.keep("more", "value", 100)
    assert cache.kept == {"more": "value"}
    cache.keep("large", "value", cache.bytes * 20)
    assert "large" not in cache.kept
    cache.keep("more", "value", 1)
    cache.drop("more")
    cache.drop("none")
    assert (cache.kept, cache.bytes) == ({}, 0)


@pytest.mark.parametrize(
    ("block", "count"),
    [
        (lambda n: b"Host: h%d\r\n" % n, 2000),
        (lambda n: b"Host: h\r\n" + b"".join(b"%x:\r\n" % (n + k * 4096) for k in range(350)), 50),
        (lambda n: b"Host: h\r\nX: %d" % n + b"x" * 3900 + b"\r\n", 2000),
        (lambda n: b"Host: h\r\nAuthorization: %d" % n + b"x" * 3900 + b"\r\n", 2000),
    ],
    ids=["short", "many fields", "long value", "password"],
)
def test_header_blocks_take_no_more_than_is_said(block, count):
    blocks = HeaderCache(lambda headers: True)

    def fill() -> HeaderCache:
        for number in range(count):
            blocks.parse(block(number))
        return blocks

    assert taken(fill) <= blocks._blocks.bytes + MIB
    assert blocks._blocks.bytes <= 16 * MIB
    assert blocks.parsed


def test_keys_that_are_read_are_not_kept_without_limit(tmp_path: Path):
    store = open_store(tmp_path / "data", segment_bytes_max=1 << 23)
    keys = [b"/" + b"/".join([b"n" * 500] * 60) + b"/%d" % n for n in range(400)]
    write(store, *(Set(key, b"") for key in keys))
    texts = ValueCache()

    def read() -> ValueCache:
        for key in keys:
            node = store.state.find(key)
            assert node is not None
            assert texts.keep(key[:1] + key[1:], node) is not None
        return texts

    # Twice as much would be kept of paths and texts without a limit.
    assert taken(read) < 17 * MIB
    assert len(texts.kept) < len(keys)
    store.close()


def test_changes_of_what_is_not_read_again_are_not_kept_without_limit(tmp_path: Path):
    store = open_store(tmp_path / "data")
    write(store, *(Set(b"/d/%d" % n, b"") for n in range(30)))
    node = store.view.find(b"/d")
    assert node is not None
    listings = ListingCache()
    for key, of in ((b"/d", node), (b"/", ROOT)):
        slices = render(store.view, key, of, NOW_NS, recursive=True)
        try:
            while True:
                next(slices)
        except StopIteration as end:
            listing = end.value
        listings.keep(key, b"".join(listing.pieces), listing.parts, recursive=True)
    assert len(listings) == 2
    for n in range(10):
        listings.changed(Change(Kind.SET, 100 + n, b"/d/1", b"v" * 2000, False, 100))
    # The last change of a key counts alone.
    assert len(listings) == 2
    listings.changed(Change(Kind.SET, 120, b"/d/2", b"v" * MIB, False, 100))
    assert len(listings) == 0
    store.close()


def test_long_credentials_are_of_no_user():
    assert read_basic("Basic YTpi") is not None
    assert read_basic("Basic " + "YTpi" * (AUTHORIZATION_BYTES_MAX // 4)) is None


def test_names_that_no_user_has_are_not_kept(fresh_server):
    ask_for_users(fresh_server.client())
    client = fresh_server.client()
    client.request("GET", "/v2/keys/x", None, {"Authorization": "Basic bm9ib2R5Om5v"})
    with Raw(fresh_server.port) as raw:
        line = "Authorization: Basic " + "YTpi" * 10_000
        assert raw.send(request("GET", "/v2/keys/x", line)).answer().status == 401


def test_watches_of_long_keys_are_counted(make_server):
    server = make_server("--max-buffered-bytes", str(10 * MIB)).start()
    watching = []
    for number in range(100):
        raw = Raw(server.port).send(request("GET", f"/v2/keys/{'k' * 50_000}{number}?wait=true"))
        watching.append(raw)
        head = raw.head()
        if head.status != 200:
            break
    assert head.status == 500
    client = server.client()
    for raw in watching:
        raw.close()
    wait_until(lambda: scrape(client)["kvd_buffered_request_bytes"] == 0)
