"""storage/event.py: history comes back as it was told."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.change import CHANGES, Change, Kind, Setting, Term, encode_record
from storage.event import Event, decode_event, encode_event, event_key
from storage.node import CorruptIndex, Node, encode_key, encode_node

uint64s = st.integers(0, 2**64 - 1)
changes = st.builds(
    Change,
    kind=st.sampled_from(sorted(CHANGES)),
    index=uint64s,
    key=st.binary(),
    value=st.none() | st.binary(),
    dir=st.booleans(),
    created_index=uint64s,
    expiration_ns=uint64s,
    refresh=st.booleans(),
)
nodes = st.builds(Node, st.binary(), uint64s, uint64s, uint64s, st.just(0)) | st.builds(
    Node, st.none(), uint64s, uint64s, uint64s, st.integers(1, 2**64 - 1)
)
events = st.builds(Event, changes, st.none() | nodes, uint64s)

KEY = event_key(7)
EVENT = Event(
    Change(Kind.COMPARE_AND_SWAP, 7, b"/\xff\xfe", b"new", False, 4, 12345, False),
    Node(b"old", 4, 6, 54321),
    1_700_000_000_000_000_001,
)


def encode(event, name=b"name"):
    row = b"" if event.prev is None else encode_node(encode_key(1, name), name, event.prev)
    key = event_key(event.change.index)
    return encode_event(key, encode_record(event.change), row, event.time_ns)


def decode(event, name=b"name"):
    return decode_event(event_key(event.change.index), encode(event, name))


@settings(deadline=None)
@given(events, st.sampled_from([b"name", b"\xff\0", b"n" * 480, b"n" * 481, b"n" * 70_000]))
def test_an_event_comes_back_as_it_was(event, name):
    assert decode(event, name) == event


@settings(deadline=None)
@given(uint64s, uint64s)
def test_keys_sort_by_index(one, other):
    assert (event_key(one) < event_key(other)) == (one < other)


def test_an_empty_value_is_not_a_missing_one():
    for value in (b"", None):
        event = EVENT._replace(change=EVENT.change._replace(value=value))
        assert decode(event).change.value == value
    for prev in (None, Node(b"", 4, 6), Node(None, 4, 6, 0, 1)):
        assert decode(EVENT._replace(prev=prev)).prev == prev


def test_a_long_key_and_large_values_come_back():
    change = EVENT.change._replace(key=b"/long" * 20_000, value=b"v" * 100_000)
    event = Event(change, Node(b"w" * 100_000, 4, 6), 1)
    assert decode(event) == event


def test_every_flipped_bit_is_refused():
    data = encode(EVENT)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptIndex):
            decode_event(KEY, bytes(flipped))


def test_every_truncation_and_extension_is_refused():
    data = encode(EVENT)
    for damaged in [data[:length] for length in range(len(data))] + [data + b"\0"]:
        with pytest.raises(CorruptIndex):
            decode_event(KEY, damaged)


def test_an_event_of_another_index_is_refused():
    with pytest.raises(CorruptIndex):
        decode_event(event_key(8), encode(EVENT))


@pytest.mark.parametrize(
    "record",
    [b"", b"\xff", b"\x81\x11", encode_record(Term(1)), encode_record(Setting("name", 1))],
    ids=["nothing", "no CBOR", "an unknown kind", "a term", "a setting"],
)
def test_what_is_no_change_is_refused(record):
    with pytest.raises(CorruptIndex):
        decode_event(KEY, encode_event(KEY, record, b"", 1))
