"""Listings: what is shown of a directory, in which order, and in slices."""

import json
from collections.abc import Generator, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.handlers.keys.listing import NODES_PER_SLICE, Listing, advance, render
from kvd.json_text import Parts, escape
from kvd.storage.format.node import Node
from kvd.storage.store import Store
from kvd.v2.commands import CreateInOrder, Delete, Set
from tests.support.stores import NOW_NS, SECOND_NS, open_store, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data", segment_bytes_max=1 << 22)
    yield opened
    opened.close()


def body(store: Store, key: bytes, *, recursive: bool = False) -> tuple[bytes, int]:
    """The answer, and how often its making paused."""
    node = store.view.find(key)
    assert node is not None
    return drain(render(store.view, key, node, NOW_NS, recursive=recursive))


def drain(slices: Generator[Parts, None, Listing]) -> tuple[bytes, int]:
    rendered = list(all_slices(slices))
    return b"".join(map(text, rendered)), len(rendered) - 1


def all_slices(slices: Generator[Parts, None, Listing]) -> Iterator[Parts]:
    """What is yielded, and the last one, which is returned."""
    last = yield from slices
    yield last.pieces


def text(parts: Parts) -> bytes:
    return b"".join(part if isinstance(part, bytes) else escape(part.raw) for part in parts)


def listing(store: Store, key: bytes, *, recursive: bool = False) -> Any:
    shown, _ = body(store, key, recursive=recursive)
    assert shown.endswith(b"}\n")
    answer = json.loads(shown)
    assert answer["action"] == "get"
    return answer["node"]


def keys(node: Any) -> list[str]:
    return [child["key"] for child in node.get("nodes", [])]


def test_the_bytes_of_a_listing(store):
    write(store, Set(b"/d/f", b"v"), Set(b"/d/s", b"", dir=True), Set(b"/d/g", b"", ttl_s=5))
    shown, _ = body(store, b"/d")
    assert shown == (
        b'{"action":"get","node":{"key":"/d","dir":true,"nodes":['
        b'{"key":"/d/f","value":"v","modifiedIndex":2,"createdIndex":2},'
        b'{"key":"/d/g","value":"","expiration":"2023-11-14T22:13:25Z","ttl":5,'
        b'"modifiedIndex":4,"createdIndex":4},'
        b'{"key":"/d/s","dir":true,"modifiedIndex":3,"createdIndex":3}],'
        b'"modifiedIndex":2,"createdIndex":2}}\n'
    )


def test_the_empty_root(store):
    assert body(store, b"/")[0] == b'{"action":"get","node":{"key":"/","dir":true}}\n'


def test_children_of_the_root_have_one_slash(store):
    write(store, Set(b"/a", b""), Set(b"/b/c", b""))
    assert keys(listing(store, b"/")) == ["/a", "/b"]
    assert keys(listing(store, b"/", recursive=True)["nodes"][1]) == ["/b/c"]


def test_only_recursive_listings_go_deeper(store):
    write(store, Set(b"/d/e/f/g", b"v"), Set(b"/d/e2", b"", dir=True))
    assert listing(store, b"/d")["nodes"] == [
        {"key": "/d/e", "dir": True, "modifiedIndex": 2, "createdIndex": 2},
        {"key": "/d/e2", "dir": True, "modifiedIndex": 3, "createdIndex": 3},
    ]
    deep = listing(store, b"/d", recursive=True)
    assert keys(deep) == ["/d/e", "/d/e2"]
    assert keys(deep["nodes"][0]["nodes"][0]) == ["/d/e/f/g"]
    assert "nodes" not in deep["nodes"][1]


def test_siblings_come_in_the_byte_order_of_their_names(store):
    names = [b"10", b"9", b"B", b"a", b"a-", b"aa", b"b", b"\xc3\xa4", b"l" * 481, b"l" * 480,
             b"l" * 3000 + b"a", b"l" * 3000, b"m"]  # fmt: skip
    write(store, *(Set(b"/so/" + name, b"") for name in names))
    assert keys(listing(store, b"/so")) == [f"/so/{name.decode()}" for name in sorted(names)]


@pytest.mark.parametrize("recursive", [False, True])
def test_hidden_nodes_are_not_listed_but_below_one_that_is_named(store, recursive):
    write(
        store,
        Set(b"/h/_x/a", b""),
        Set(b"/h/_x/_b", b""),
        Set(b"/h/_f", b""),
        Set(b"/h/d/_g", b""),
        Set(b"/h/d_/g", b""),
    )
    assert keys(listing(store, b"/h", recursive=recursive)) == ["/h/d", "/h/d_"]
    assert keys(listing(store, b"/h/_x", recursive=recursive)) == ["/h/_x/a"]
    assert "nodes" not in listing(store, b"/h/d", recursive=recursive)
    assert "nodes" not in listing(store, b"/h", recursive=recursive)["nodes"][0]


def test_a_directory_of_hidden_nodes_looks_empty(store):
    write(store, Set(b"/h/_a", b""), Set(b"/e", b"", dir=True))
    for key in (b"/h", b"/e"):
        assert b'"nodes"' not in body(store, key)[0]


def test_names_are_escaped_at_each_level(store):
    write(store, Set(b'/<a>/"\xff/\n', b"&"))
    shown, _ = body(store, b"/<a>", recursive=True)
    assert rb'"key":"/\u003ca\u003e/\"\ufffd/\n","value":"\u0026"' in shown
    json.loads(shown)


def test_a_directory_shows_its_ttl_and_does_not_pass_it_on(store):
    write(store, Set(b"/d", b"", dir=True, ttl_s=7), Set(b"/d/a", b""))
    shown = listing(store, b"/d")
    assert shown["ttl"] == 7
    assert "ttl" not in shown["nodes"][0]
    assert listing(store, b"/")["nodes"][0]["ttl"] == 7


def test_no_ttl_is_negative(store):
    write(store, Set(b"/d/a", b"", ttl_s=0), now_ns=NOW_NS - 3 * SECOND_NS)
    assert "ttl" not in listing(store, b"/d")["nodes"][0]


def test_a_long_listing_pauses_after_each_slice(store):
    count = 3 * NODES_PER_SLICE + 1
    write(store, *(CreateInOrder(b"/q", b"") for _ in range(count)))
    shown, pauses = body(store, b"/q")
    assert pauses == 3
    indexes = [child["createdIndex"] for child in json.loads(shown)["node"]["nodes"]]
    assert indexes == list(range(2, 2 + count))


def test_hidden_nodes_count_for_pauses(store):
    write(store, *(Set(b"/h/_%d" % i, b"") for i in range(NODES_PER_SLICE + 1)))
    assert body(store, b"/h")[1] == 1


def test_what_has_ended_is_not_shown_and_counts_for_pauses(store):
    ended = NOW_NS - SECOND_NS
    count = 3 * NODES_PER_SLICE
    write(store, *(Set(b"/e/%d" % i, b"", ttl_s=1) for i in range(count)), now_ns=ended)
    write(store, Set(b"/e/d", b"", dir=True, ttl_s=1), Set(b"/e/d/k", b"v"), now_ns=ended)
    write(store, Set(b"/e/z", b"", ttl_s=2), now_ns=ended)
    node = store.view.find(b"/e")
    assert node is not None
    slices = render(store.view, b"/e", node, NOW_NS, recursive=True, ended_ns=NOW_NS)
    shown, pauses = drain(slices)
    assert keys(json.loads(shown)["node"]) == ["/e/z"]
    assert pauses >= 3


def test_the_way_back_from_many_levels_pauses_too(store):
    levels = 4 * NODES_PER_SLICE
    write(store, Set(b"/x" * levels, b""))
    node = store.view.find(b"/")
    assert node is not None
    slices = list(all_slices(render(store.view, b"/", node, NOW_NS, recursive=True)))
    assert sum(text(parts).count(b'"nodes":[') == 0 for parts in slices) >= 3
    assert max(text(parts).count(b"}") for parts in slices) <= NODES_PER_SLICE


def test_listings_go_on_until_a_time_or_a_large_value(store):
    large = b"v" * 100_000
    count = 2 * NODES_PER_SLICE
    write(store, *(Set(b"/w/%05d" % i, b"") for i in range(count)))
    write(store, Set(b"/w/00000", large), Set(b"/w/00001", b""))
    node = store.view.find(b"/w")
    assert node is not None
    slices = render(store.view, b"/w", node, NOW_NS, recursive=True)
    past, never = 0.0, inf
    parts, listing = advance(slices, until=never)
    assert (len(parts), listing) == (3, None)
    parts, listing = advance(slices, until=past)
    assert text(parts).count(b'"key"') <= NODES_PER_SLICE
    assert listing is None
    parts, listing = advance(slices, until=never)
    assert len(parts) == 1
    assert listing is not None
    assert text(parts).endswith(b"}\n")


def test_a_listing_shows_the_state_it_began_with(store):
    write(store, *(Set(b"/d/%05d" % i, b"old") for i in range(NODES_PER_SLICE + 10)))
    with store.long_view() as view:
        node = view.find(b"/d")
        assert node is not None
        slices = render(view, b"/d", node, NOW_NS, recursive=True)
        begun = text(next(slices))
        write(store, Delete(b"/d", dir=True, recursive=True), Set(b"/d/new", b"new"))
        shown = json.loads(begun + drain(slices)[0])["node"]["nodes"]
    assert len(shown) == NODES_PER_SLICE + 10
    assert {child["value"] for child in shown} == {"old"}


def test_a_tree_of_2000_levels_is_listed(store):
    write(store, Set(b"/x" * 2000, b"bottom"))
    shown, pauses = body(store, b"/", recursive=True)
    assert pauses > 2000 // NODES_PER_SLICE, "long paths count for more"
    assert shown.count(b'"nodes":[') == 2000
    assert b'"value":"bottom"' in shown
    assert shown.count(b"{") == shown.count(b"}")


class Tree:
    """Directories by their ids, as `render` sees them."""

    def __init__(self) -> None:
        self.directories: dict[int, dict[bytes, Node]] = {1: {}}

    def add(self, path: list[bytes], value: bytes) -> None:
        dir_id = 1
        for name in path[:-1]:
            node = self.directories[dir_id].get(name)
            if node is None or not node.dir_id:
                node = Node(None, 1, 1, 0, len(self.directories) + 1)
                self.directories[node.dir_id] = {}
                self.directories[dir_id][name] = node
            dir_id = node.dir_id
        if path[-1] not in self.directories[dir_id]:
            self.directories[dir_id][path[-1]] = Node(value, 1, 1)

    def children(self, dir_id: int) -> Iterator[tuple[bytes, Node]]:
        return iter(sorted(self.directories[dir_id].items()))

    def nested(self, dir_id: int, prefix: str) -> list[Any]:
        """What a recursive listing shows, the slow way."""
        shown = []
        for name, node in self.children(dir_id):
            key = f"{prefix}/{name.decode()}"
            if name.startswith(b"_"):
                continue
            fields: dict[str, Any] = {"key": key}
            if node.dir_id:
                fields["dir"] = True
                if nodes := self.nested(node.dir_id, key):
                    fields["nodes"] = nodes
            else:
                fields["value"] = (node.value or b"").decode()
            shown.append(fields | {"modifiedIndex": 1, "createdIndex": 1})
        return shown


NAME = st.sampled_from([b"a", b"b", b"_h", b"b_", b"<"])


@given(st.lists(st.lists(NAME, min_size=1, max_size=5), max_size=20))
def test_any_tree_is_nested_as_it_is(paths):
    tree = Tree()
    for path in paths:
        tree.add(path, b"v")
    root = Node(None, 0, 0, 0, 1)
    shown = json.loads(drain(render(tree, b"/", root, NOW_NS, recursive=True))[0])
    assert shown["node"].get("nodes", []) == tree.nested(1, "")
