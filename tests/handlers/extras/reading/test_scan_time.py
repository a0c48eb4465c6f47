"""Scans that take long: limits, pauses, and values in pieces."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kvd.handlers.extras.reading.listing import NODES_PER_SLICE, render
from kvd.handlers.extras.reading.scan import count, find, marks
from kvd.handlers.extras.reading.search import Text
from kvd.handlers.extras.reading.walk import State
from kvd.handlers.keys.listing import Listing
from kvd.storage.format.node import Node
from kvd.v2.commands import Delete, Set
from kvd.v2.extras.parameters import ReadExtras, Shape
from tests.support.stores import NOW_NS, SECOND_NS, write
from tests.support.walks import Hurried, make, run, state, walk_all


class Counted:
    """Directories in a dict, which counts whose children are looked at."""

    def __init__(self, directories: dict[int, dict[bytes, Node]]) -> None:
        self.directories = directories
        self.looked_at = 0

    def find(self, path: bytes) -> Node | None:
        return Node(None, 1, 1, 0, 1)

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        for name, node in sorted(self.directories[dir_id].items()):
            if name >= first:
                self.looked_at += 1
                yield name, node

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        raise NotImplementedError


def test_what_is_not_shown_is_not_looked_at():
    node = Node(b"v", 1, 1)
    names = [b"_%03d" % n for n in range(500)] + [b"B", b"a"] + [b"b%03d" % n for n in range(500)]
    tree = Counted({1: dict.fromkeys(names, node)})
    root = Node(None, 0, 0, 0, 1)
    for extras, wanted in (
        (ReadExtras(limit=1), [b"B"]),
        (ReadExtras(limit=3, after=b"B"), [b"a", b"b000", b"b001"]),
        (ReadExtras(prefix=b"b49"), [b"b%03d" % n for n in range(490, 500)]),
        (ReadExtras(prefix=b"_", after=b"_498", hidden=True), [b"_499"]),
    ):
        tree.looked_at = 0
        slices = render(tree, b"/", root, extras, recursive=False, now_ns=NOW_NS)
        shown = json.loads(drained(slices)[0])["node"]["nodes"]
        assert [one["key"].encode() for one in shown] == [b"/" + name for name in wanted]
        assert tree.looked_at <= len(wanted) + 3


def test_counts_do_not_depend_on_slices(store):
    make(store, *(f"/d/{n % 7}/{n:03}" for n in range(300)))
    write(store, Set(b"/d/x", b"ttl", ttl_s=5))
    answer, lines, slices = run(count(lambda: state(store), Hurried(), walk_all(), b"{}"))
    assert answer == {
        "action": "count", "node": {}, "keys": 301, "dirs": 7, "bytes": 303, "expiring": 1,
        "complete": True,
    }  # fmt: skip
    assert lines == b""
    assert slices > 10


def test_what_takes_too_long_is_not_complete(store):
    make(store, *(f"/d/{n:04}" for n in range(1000)))
    answer, _, slices = run(count(lambda: state(store), Hurried(3), walk_all(), b"{}"))
    assert slices == 4
    assert not answer["complete"]
    assert 0 < answer["keys"] < 1000


def test_a_search_that_takes_too_long_goes_on_where_it_was(store):
    make(store, *(f"/d/{n:04}" for n in range(500)))
    extras = ReadExtras(find=b"7")
    found: list[str] = []
    after: list[bytes] = []
    while True:
        scan = find(lambda: state(store), Hurried(2), walk_all(after=after), extras)
        answer, lines, _ = run(scan)
        found += [node["key"] for node in answer["nodes"]]
        if answer["complete"]:
            break
        place = lines.removeprefix(b"X-Kvd-Next: ").strip()
        after = place.removeprefix(b"/d/").split(b"/")
    assert found == [f"/d/{n:04}" for n in range(500) if "7" in f"{n:04}"]
    assert lines == b""


def test_what_has_ended_is_not_there(store):
    write(store, *(Set(b"/d/%03d" % n, b"v", ttl_s=n % 2 * 5 or None) for n in range(500)))
    write(store, Set(b"/d/gone", b"", dir=True, ttl_s=5))
    make(store, "/d/gone/x")
    later = NOW_NS + 10 * SECOND_NS

    def look() -> State:
        return state(store, later)

    living = [f"/d/{n:03}" for n in range(0, 500, 2)]
    assert run(count(look, Hurried(), walk_all(), b"{}"))[0]["keys"] == 250
    found, _, _ = run(find(look, Hurried(), walk_all(), ReadExtras(find=b"v")))
    assert [node["key"] for node in found["nodes"]] == living
    marked, _, _ = run(marks(look, Hurried(), b"/d", b"{}", extras=ReadExtras(marks=100)))
    assert marked["marks"] == [living[99][3:], living[199][3:]]
    assert marked["count"] == 250
    slices = render(
        store.view,
        b"/d",
        store.view.find(b"/d"),
        ReadExtras(limit=3, after=b"001"),
        recursive=False,
        now_ns=later,
    )
    body, lines, _ = drained(slices)
    assert [n["key"] for n in json.loads(body)["node"]["nodes"]] == living[1:4]
    assert lines == b"X-Kvd-Next: 006\r\n"


def test_among_many_that_have_ended_there_are_pauses(store):
    write(store, *(Set(b"/d/%04d" % n, b"v", ttl_s=5) for n in range(3000)))
    make(store, "/d/living")
    node = store.view.find(b"/d")
    assert node is not None
    later = NOW_NS + 10 * SECOND_NS
    extras = ReadExtras(limit=1)
    slices = render(store.view, b"/d", node, extras, recursive=False, now_ns=later)
    body, _, pauses = drained(slices)
    assert [n["key"] for n in json.loads(body)["node"]["nodes"]] == ["/d/living"]
    assert pauses >= 3000 // NODES_PER_SLICE


def test_marks_of_a_directory_that_is_removed_meanwhile(store):
    make(store, *(f"/d/{n:04}" for n in range(2500)))

    def remove(slices: int) -> None:
        if slices == 1:
            write(store, Delete(b"/d", dir=True, recursive=True))
            make(store, "/d/new")

    scan = marks(lambda: state(store), Hurried(), b"/d", b"{}", extras=ReadExtras(marks=500))
    answer, _, _ = run(scan, remove)
    assert answer["marks"] == ["0499", "0999"]


def drained(slices: Any) -> tuple[bytes, bytes, int]:
    """The body of a listing, its header lines, and how often it paused."""
    pieces: list[bytes] = []
    pauses = 0
    while True:
        try:
            parts = next(slices)
            pauses += 1
        except StopIteration as end:
            listing = end.value
            assert isinstance(listing, Listing)
            return b"".join([*pieces, *listing.pieces]), listing.lines, pauses
        assert all(isinstance(part, bytes) for part in parts)
        pieces += parts


@pytest.mark.parametrize("shape", [Shape(base64=True), Shape(max_value=3_000_000)])
def test_a_large_value_comes_in_pieces(store, shape):
    write(store, Set(b"/d/x", b"\x01" * 3_500_000))
    node = store.view.find(b"/d")
    assert node is not None
    slices = render(
        store.view, b"/d", node, ReadExtras(shape=shape), recursive=False, now_ns=NOW_NS
    )
    sizes = [sum(map(len, parts)) for parts in slices]
    assert max(sizes) <= 300_000
    assert sum(sizes) > 3_500_000


@pytest.mark.parametrize(
    ("text", "value", "place"),
    [
        ("Needle", "a nEEDLE", 2),
        ("n", "", -1),
        ("é", "aÉ", 1),
        ("É", "xxé", 2),
        ("ñandú", "EL ÑANDÚ", 3),
        ("Ж", "ascii", -1),
        ("a.c", "abc", -1),
        ("\x00", "a\x00", 1),
    ],
)
def test_a_text_is_found_in_any_case(text, value, place):
    assert Text(text.encode()).find(value.encode()) == place


def test_bytes_that_are_no_text_are_found_as_they_are():
    text = Text(b"\xffA\xfe")
    assert text.find(b"xx\xffa\xfe") == 2
    assert text.find("ÿAþ".encode()) == -1
