"""Cached listings: always equal to listings rendered at that time."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kvd.handlers.keys.listing import KEPT_BODY_BYTES_MAX, KEPT_LEVELS_MAX, Listing, render
from kvd.handlers.keys.listing_cache import ListingCache
from kvd.storage.format.event import Event
from kvd.storage.format.node import ROOT, Node
from kvd.storage.store import Store
from kvd.v2.commands import CreateInOrder, Delete, Set, Update
from tests.support.stores import NOW_NS, open_store, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data", segment_bytes_max=1 << 22)
    yield opened
    opened.close()


class Reader:
    """Reads directories as the server does: what is kept, else made anew and kept."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.listings = ListingCache()
        self.hits = 0

    def write(self, *commands: object) -> None:
        for event in write(self.store, *commands):
            if isinstance(event, Event):
                self.listings.changed(event.change)

    def check(self, key: bytes, *, recursive: bool) -> bool:
        """Read a directory, and say whether it was kept; what was kept must be right."""
        node = self.store.view.find(key)
        kept = self.listings.find(key, recursive=recursive)
        if node is None or not node.dir_id:
            assert kept is None
            return False
        body, listing = rendered(self.store, key, node, recursive=recursive)
        if kept is not None:
            self.hits += 1
            assert kept == body
        elif listing.parts is not None:
            self.listings.keep(key, body, listing.parts, recursive=recursive)
        return kept is not None


def rendered(store: Store, key: bytes, node: Node, *, recursive: bool) -> tuple[bytes, Listing]:
    """The body, and the listing."""
    slices = render(store.view, key, node, NOW_NS, recursive=recursive)
    texts = []
    while True:
        try:
            texts += next(slices)
        except StopIteration as end:
            listing: Listing = end.value
            return b"".join(texts + listing.pieces), listing


DIRECTORIES = (b"/", b"/a", b"/a/b", b"/a/b/c", b"/ab", b"/_h")
NAMES = (b"a", b"b", b"c", b"_h", b"b/c", b"_h/c", b"c/d/e", b'<"\xff>', b"n" * 500, b"")


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_what_would_be_rendered_now(store, seed):
    random = Random(seed)
    reader = Reader(store)
    for _ in range(500):
        for _ in range(random.choice([1, 1, 1, 2, 5])):
            key = b"/" + (random.choice(DIRECTORIES) + b"/" + random.choice(NAMES)).strip(b"/")
            if key == b"/":
                continue
            value = random.choice([b"1", b'<"\n\xff', b""])
            ttl_s = random.choice([None, 50])
            command = random.choice([
                Set(key, value), Set(key, value), Set(key, value), CreateInOrder(key, value),
                Set(key, b"", dir=True), Set(key, value, ttl_s=50), Delete(key),
                Delete(key, recursive=True), Update(key, value, ttl_s=ttl_s),
            ])  # fmt: skip
            reader.write(command)
        for directory in DIRECTORIES:
            for recursive in (False, True):
                if random.random() < 0.5:
                    reader.check(directory, recursive=recursive)
    assert reader.hits > 500


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        Set(b"/d/s/050", b"new"),
        Set(b"/d/s/0505", b"new"),
        Set(b"/d/s/_h", b"new"),
        Delete(b"/d/s/050"),
        CreateInOrder(b"/d/s", b"new"),
    ],
    ids=["value", "new", "hidden", "removed", "in-order"],
)
def test_a_change_of_a_file_does_not_cost_the_listing(store, change, recursive):
    reader = Reader(store)
    reader.write(*(Set(b"/d/s/%03d" % n, b"v") for n in range(100)))
    for key in (b"/d/s", b"/d", b"/"):
        assert not reader.check(key, recursive=recursive)
    for _ in range(3):
        reader.write(change)
        for key in (b"/d/s", b"/d", b"/"):
            assert reader.check(key, recursive=recursive)


def test_a_listing_that_is_not_read_again_costs_the_writers_little(store):
    reader = Reader(store)
    reader.write(*(Set(b"/d/%03d" % n, b"v") for n in range(100)))
    reader.check(b"/d", recursive=False)
    reader.write(*(Set(b"/d/%03d" % n, b"w") for n in range(20)))
    assert reader.check(b"/d", recursive=False)
    reader.write(*(Set(b"/d/%03d" % n, b"w") for n in range(60)))
    assert len(reader.listings) == 0


@pytest.mark.parametrize(
    "change",
    [Set(b"/d/new", b"v", ttl_s=5), Set(b"/d/new", b"", dir=True), Set(b"/d/new/f", b"v")],
    ids=["ttl", "directory", "directory-on-the-way"],
)
def test_what_is_rare_is_rendered_again(store, change):
    reader = Reader(store)
    reader.write(Set(b"/d/f", b"v"))
    for recursive in (False, True):
        reader.check(b"/d", recursive=recursive)
    reader.write(change)
    for recursive in (False, True):
        assert not reader.check(b"/d", recursive=recursive)


def test_a_ttl_anywhere_in_it_keeps_a_listing_from_lasting(store):
    write(store, Set(b"/a/b/c", b"1", ttl_s=5), Set(b"/a/d", b"1"), Set(b"/e/f", b"1"))
    write(store, Update(b"/e", b"", ttl_s=5))

    def lasts(key: bytes, *, recursive: bool) -> bool:
        node = store.view.find(key)
        assert node is not None
        return rendered(store, key, node, recursive=recursive)[1].parts is not None

    assert lasts(b"/a", recursive=False)
    assert not lasts(b"/a", recursive=True)
    assert not lasts(b"/e", recursive=False)
    assert not lasts(b"/", recursive=False)


def test_no_more_is_kept_than_there_is_room_for(store):
    listings = ListingCache()
    parts = rendered(store, b"/", ROOT, recursive=False)[1].parts
    assert parts is not None
    for number in range(64):
        listings.keep(b"/%d" % number, b"x" * (1 << 20), parts, recursive=False)
    kept = [n for n in range(64) if listings.find(b"/%d" % n, recursive=False) is not None]
    assert kept == list(range(64 - len(kept), 64))
    assert 10 <= len(kept) < 16
    listings.keep(b"/large", b"x" * (KEPT_BODY_BYTES_MAX + 1), parts, recursive=False)
    assert listings.find(b"/large", recursive=False) is None


def test_changes_of_long_names_that_it_does_not_show_do_not_pile_up(store):
    reader = Reader(store)
    long = b"/d/_h/" + b"n" * 500
    reader.write(Set(b"/d/f", b"v"), *(Set(b"%b%d" % (long, n), b"1") for n in range(16)))
    reader.check(b"/d", recursive=True)
    reader.write(*(Set(b"%b%d" % (long, n), b"2") for n in range(16)))
    assert len(reader.listings) == 0


def test_what_is_nested_too_deep_is_not_kept(store):
    write(store, Set(b"/a" * (KEPT_LEVELS_MAX + 1), b"v"))
    assert rendered(store, b"/", ROOT, recursive=True)[1].parts is None
    assert rendered(store, b"/a/a", store.view.find(b"/a/a"), recursive=True)[1].parts is not None
