"""Bodies that are kept: a file is always answered as it is."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from kvd.bodies import BODY_BYTES_MAX, Bodies
from kvd.commands import Delete, Set, Update
from kvd.response import get_body
from storage.store import Store
from tests.stores import open_store, write


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "data", segment_bytes_max=1 << 22)
    yield opened
    opened.close()


def read(bodies: Bodies, key: bytes, times: int = 3) -> bytes | None:
    """The answer to some reads, which must all be the same."""
    answers = {bodies.find(key) for _ in range(times)}
    assert len(answers) == 1
    return answers.pop()


def test_every_read_is_answered_by_the_file_as_it_is(store):
    random = Random(5)
    bodies = Bodies(store)
    keys = [b"/a", b"/d/a", b"/d/b", b"/d/e/a", b"/_h", b"/" + b"n" * 500]
    for _ in range(400):
        key = random.choice(keys)
        value = random.choice([b"1", b'<"\n\xff', b"", b"x" * 2000])
        command = random.choice([
            Set(key, value), Set(key, value), Set(key, value, ttl_s=50), Delete(key),
            Delete(b"/d", recursive=True), Update(key, value), Set(key, b"", dir=True),
        ])  # fmt: skip
        write(store, command)
        for other in random.choices([*keys, b"/d", b"/none"], k=4):
            node = store.view.find(other)
            lasts = node is not None and node.value is not None and not node.expiration_ns
            wanted = get_body(other, node, 0) if node is not None and lasts else None
            assert read(bodies, other, random.randint(1, 3)) == wanted


def test_a_file_in_a_directory_that_was_made_anew_is_another_one(store):
    bodies = Bodies(store)
    write(store, Set(b"/d/a", b"old"))
    assert read(bodies, b"/d/a") is not None
    write(store, Delete(b"/d", recursive=True), Set(b"/d/b", b"new"))
    assert read(bodies, b"/d/a") is None


def test_what_is_large_is_answered_another_way(store):
    bodies = Bodies(store)
    write(store, Set(b"/small", b"x" * BODY_BYTES_MAX), Set(b"/large", b"x" * (BODY_BYTES_MAX + 1)))
    assert read(bodies, b"/small") is not None
    assert read(bodies, b"/large") is None


def test_reading_many_keys_is_right_beyond_what_is_kept(store):
    bodies = Bodies(store)
    keys = [b"/d/%d" % number for number in range(700)]
    for number in range(0, len(keys), 100):
        write(store, *(Set(key, key + b"x" * 60_000) for key in keys[number : number + 100]))
    for key in keys * 2:
        body = read(bodies, key)
        assert body is not None
        assert key + b"xxx" in body
