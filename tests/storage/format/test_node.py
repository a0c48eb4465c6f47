"""storage/format/node.py: a node comes back as it was, from under its own key only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format.node import (
    NAME_BYTES_KEPT,
    NAME_BYTES_MAX,
    CorruptIndex,
    Node,
    child_key,
    decode_name,
    decode_node,
    encode_key,
    encode_node,
    has_ended,
    id_prefix,
    parent_prefix,
    parse_node,
    previous_row,
)

LMDB_KEY_BYTES_MAX = 511

uint64s = st.integers(0, 2**64 - 1)
ids = st.integers(1, 2**64 - 1)
names = st.binary(min_size=1, max_size=40) | st.builds(
    lambda seed, length: (seed * length)[:length],
    st.binary(min_size=1, max_size=3),
    st.integers(NAME_BYTES_KEPT, NAME_BYTES_MAX + 40),
)
files = st.builds(Node, st.binary(), uint64s, uint64s, uint64s, st.just(0))
directories = st.builds(Node, st.none(), uint64s, uint64s, uint64s, ids)

NAMES = [b"name", b"\xff\x00\xfe", b"n" * NAME_BYTES_MAX, b"n" * (NAME_BYTES_MAX + 1), b"n" * 65536]
NAME_IDS = ["short", "not UTF-8", "longest in a key", "first too long", "64 KiB"]
NODES = [
    Node(b"value", 4, 7),
    Node(b"", 4, 7, 1_700_000_000_000_000_001),
    Node(None, 4, 7, 0, 12),
]
NODE_IDS = ["file", "empty file with TTL", "directory"]


@settings(deadline=None)
@given(ids, names, files | directories)
def test_a_node_and_its_name_come_back_as_they_were(parent_id, name, node):
    key = encode_key(parent_id, name)
    data = encode_node(key, name, node)
    assert decode_node(key, data) == node
    assert decode_name(key, data) == name


@settings(deadline=None)
@given(ids, names)
def test_a_key_fits_into_lmdb_and_stands_among_its_siblings(parent_id, name):
    key = encode_key(parent_id, name)
    assert len(key) <= LMDB_KEY_BYTES_MAX
    assert key.startswith(id_prefix(parent_id))


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=NAME_BYTES_MAX), unique=True))
def test_keys_of_short_names_sort_like_the_names(siblings):
    keys = [encode_key(9, name) for name in sorted(siblings)]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("ending", [b"x" * 41, b"y" * 41, b"x" * 42])
def test_long_names_that_begin_alike_have_keys_of_their_own(ending):
    beginning = b"n" * NAME_BYTES_KEPT
    assert encode_key(1, beginning + ending) != encode_key(1, beginning + b"z" * 41)


def test_a_long_name_has_not_the_key_of_a_short_one():
    long = b"n" * (NAME_BYTES_MAX + 1)
    assert encode_key(1, long) != encode_key(1, encode_key(1, long)[9:])


@pytest.mark.parametrize("name", NAMES[:-1], ids=NAME_IDS[:-1])
@pytest.mark.parametrize("node", NODES, ids=NODE_IDS)
def test_every_flipped_bit_is_refused(name, node):
    key = encode_key(3, name)
    data = encode_node(key, name, node)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptIndex):
            decode_node(key, bytes(flipped))


@pytest.mark.parametrize("node", NODES, ids=NODE_IDS)
def test_every_truncation_and_extension_is_refused(node):
    key = encode_key(3, b"name")
    data = encode_node(key, b"name", node)
    for damaged in [data[:length] for length in range(len(data))] + [data + b"\0"]:
        with pytest.raises(CorruptIndex):
            decode_node(key, damaged)


@pytest.mark.parametrize("node", NODES, ids=NODE_IDS)
def test_the_row_that_history_holds_of_a_node_has_the_same_content(node):
    assert parse_node(previous_row(node)) == node
    assert parse_node(b"before it" + previous_row(node), 9) == node


@pytest.mark.parametrize("name", NAMES, ids=NAME_IDS)
@pytest.mark.parametrize("node", NODES, ids=NODE_IDS)
def test_a_record_under_another_key_is_refused(name, node):
    data = encode_node(encode_key(3, name), name, node)
    for other in (encode_key(4, name), encode_key(3, name + b"x"), encode_key(3, b"other")):
        with pytest.raises(CorruptIndex):
            decode_node(other, data)


@pytest.mark.parametrize("name", NAMES, ids=NAME_IDS)
def test_the_key_of_a_child_is_that_from_the_prefix_of_its_directory(name):
    for dir_id in (1, 2**64 - 1):
        assert child_key(parent_prefix(dir_id), name) == encode_key(dir_id, name)


@pytest.mark.parametrize("name", NAMES, ids=NAME_IDS)
@pytest.mark.parametrize("node", NODES, ids=NODE_IDS)
def test_a_row_behind_other_bytes_is_read_where_it_begins(name, node):
    row = encode_node(encode_key(1, name), name, node)
    assert parse_node(b"before" + row, len(b"before")) == node


@pytest.mark.parametrize(("ends_ns", "ended"), [(0, False), (9, True), (10, True), (11, False)])
def test_a_node_has_ended_when_its_time_has_come(ends_ns, ended):
    assert has_ended(Node(b"", 1, 1, ends_ns), 10) is ended
