"""Texts of files: what is kept is right or forgotten, and no more than there is room for."""

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kvd.handlers.keys.value_cache import TEXT_BYTES_MAX, ValueCache
from kvd.json_text import LARGE_VALUE_BYTES
from kvd.storage.format.event import Event
from kvd.storage.store import Store
from kvd.v2.commands import Delete, Set, Update
from kvd.v2.response import get_parts
from tests.support.stores import open_store, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data", segment_bytes_max=1 << 22)
    yield opened
    opened.close()


def test_what_is_read_and_kept_is_the_file_as_it_is(store):
    random = Random(5)
    texts = ValueCache()
    keys = [b"/a", b"/d/a", b"/d/b", b"/d/e/a", b"/_h", b"/" + b"n" * 500]
    for _ in range(400):
        key = random.choice(keys)
        value = random.choice([b"1", b'<"\n\xff', b"", b"x" * 2000])
        command = random.choice([
            Set(key, value), Set(key, value), Set(key, value, ttl_s=50), Delete(key),
            Delete(b"/d", recursive=True), Update(key, value), Set(key, b"", dir=True),
        ])  # fmt: skip
        events = [event for event in write(store, command) if isinstance(event, Event)]
        texts.forget_changed([(event, []) for event in events])
        for other in random.choices([*keys, b"/d", b"/none"], k=4):
            node = store.state.find(other)
            lasts = node is not None and node.value is not None and not node.expiration_ns
            wanted = b"".join(get_parts(other, node, 0)) if node is not None and lasts else None
            read = texts.kept.get(other) or (node and texts.keep(other, node))
            for text in (read, texts.kept.get(other)):
                assert wanted == (text and b'{"action":"get","node":%b}\n' % text)


def test_what_is_large_is_not_kept(store):
    texts = ValueCache()
    sizes = {b"/small": TEXT_BYTES_MAX - 100, b"/medium": LARGE_VALUE_BYTES}
    sizes[b"/large"] = LARGE_VALUE_BYTES + 1
    for key, size in sizes.items():
        write(store, Set(key, b"x" * size))
    found = [texts.keep(key, store.state.find(key)) for key in sizes]
    assert [text is not None for text in found] == [True, True, False]
    assert texts.kept == {b"/small": found[0]}


@pytest.mark.parametrize("size", [10, 500, 20_000])
def test_what_is_kept_is_bounded_by_what_it_takes(store, size):
    texts = ValueCache()
    most = 0
    for number in range(40_000 if size < 1000 else 2000):
        key, text = b"/key-%09d" % number, b"x" * size
        texts.kept[key] = text
        texts.wrote(len(text))
        most = max(most, len(texts.kept) * (sys.getsizeof(key) + sys.getsizeof(text) + 100))
    assert 2 << 20 < most < 20 << 20


def test_a_key_that_is_written_over_and_over_drops_no_other(store):
    texts = ValueCache()
    texts.kept[b"/other"] = b"x" * 100
    for _ in range(2000):
        texts.kept[b"/same"] = b"y" * 20_000
        texts.wrote(20_000)
    assert texts.kept.keys() == {b"/same", b"/other"}
