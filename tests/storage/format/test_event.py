"""storage/format/event.py: events of the history come back as they were."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format.event import (
    Event,
    decode_event,
    encode_event,
    encode_naming,
    event_key,
    named_by,
    whole_bytes,
    with_prev,
)
from kvd.storage.format.node import CorruptIndex, Node, encode_key, encode_node, previous_row
from kvd.storage.format.records import (
    CHANGES,
    REMOVALS,
    Change,
    Kind,
    LoggedSetting,
    Term,
    encode_record,
)

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
    [b"", b"\xff", b"\x81\x11", encode_record(Term(1)), encode_record(LoggedSetting("name", 1))],
    ids=["nothing", "no CBOR", "an unknown kind", "a term", "a setting"],
)
def test_what_is_no_change_is_refused(record):
    with pytest.raises(CorruptIndex):
        decode_event(KEY, encode_event(KEY, record, b"", 1))


# Rows that name the event before.

SETTING = Change(Kind.SET, 5, b"/large", b"v" * 5000, False, 5, 54321, False)
BEFORE = Node(b"v" * 5000, 5, 5, 54321)
AFTER = Change(Kind.COMPARE_AND_SWAP, 9, b"/large", b"w" * 5000, False, 5, 0, False)


def holding(change, prev=None, time_ns=1, *, under=None):
    """The row of an event that holds the node before."""
    row = b"" if prev is None else previous_row(prev)
    key = event_key(under or change.index)
    return encode_event(key, encode_record(change), row, time_ns)


def naming(change, prev, time_ns=1):
    """The row of an event that names the one that has set the node before."""
    return encode_naming(event_key(change.index), encode_record(change), prev, time_ns)


def found(*rows):
    """What looks up rows that stand under these indexes."""
    return dict(rows).get


@settings(deadline=None)
@given(
    changes.filter(lambda change: change.index and change.kind not in REMOVALS),
    changes,
    st.binary(),
    uint64s,
    uint64s,
)
def test_an_event_that_names_the_one_before_has_its_content(before, change, value, index, time_ns):
    before = before._replace(value=value, dir=False, key=change.key)
    prev = Node(value, before.created_index, before.index, before.expiration_ns)
    row, key = naming(change, prev, time_ns), event_key(change.index)
    for named in (holding(before), naming(before, Node(b"older", 1, index))):
        find = found((before.index, named))
        assert decode_event(key, row, find) == Event(change, prev, time_ns)
        # What it names may go once it has been given the node.
        whole = with_prev(key, row, find)
        assert whole == holding(change, prev, time_ns)
        assert decode_event(key, whole) == Event(change, prev, time_ns)
    assert named_by(row) == before.index
    assert whole_bytes(row) == len(whole)
    assert (named_by(whole), whole_bytes(whole)) == (0, len(whole))
    assert with_prev(key, whole, found()) is whole


def test_a_row_that_names_another_does_not_hold_the_value():
    assert len(naming(AFTER, BEFORE)) < len(holding(AFTER, BEFORE)) - 5000


def test_readers_that_do_not_know_such_rows_find_no_record_in_them():
    row = naming(AFTER, BEFORE)
    length = int.from_bytes(row[12:16], "little")
    for end in (16 + length, len(row)):
        with pytest.raises(cbor2.CBORDecodeError):
            cbor2.loads(row[16:end])


@pytest.mark.parametrize("row", [b"", b"\xff" * 16, b"\xff" * 28], ids=len)
def test_what_is_too_short_names_nothing(row):
    assert (named_by(row), whole_bytes(row)) == (0, len(row))


def test_a_row_of_which_any_bit_is_flipped_is_refused_and_so_is_the_one_that_it_names():
    key, row, named = event_key(9), naming(AFTER, BEFORE), holding(SETTING, Node(b"older", 5, 4))
    for bit in [*range(8 * 60), *range(8 * 60, 8 * len(row), 997)]:
        flipped = bytearray(row)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptIndex):
            decode_event(key, bytes(flipped), found((5, named)))
        flipped = bytearray(named)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptIndex):
            decode_event(key, row, found((5, bytes(flipped))))


def test_every_truncation_of_a_row_that_names_another_is_refused():
    row = naming(AFTER._replace(value=b"w"), BEFORE)
    for damaged in [row[:length] for length in range(len(row))] + [row + b"\0"]:
        with pytest.raises(CorruptIndex):
            decode_event(event_key(9), damaged, found((5, holding(SETTING))))


@pytest.mark.parametrize(
    "named",
    [
        SETTING._replace(key=b"/other"),
        SETTING._replace(index=6),
        SETTING._replace(value=b"v" * 4999),
        SETTING._replace(value=None),
        SETTING._replace(value=None, dir=True),
        SETTING._replace(kind=Kind.DELETE),
        SETTING._replace(kind=Kind.EXPIRE, value=None),
        None,
    ],
    ids=["key", "index", "length", "no value", "directory", "removal", "expiry", "missing"],
)
def test_a_row_that_names_an_event_which_has_not_set_the_file_before_is_refused(named):
    rows = [] if named is None else [(5, holding(named, under=5))]
    with pytest.raises(CorruptIndex, match="event 5"):
        decode_event(event_key(9), naming(AFTER, BEFORE), found(*rows))
    with pytest.raises(CorruptIndex, match="event 5"):
        with_prev(event_key(9), naming(AFTER, BEFORE), found(*rows))


def test_a_row_that_names_another_is_refused_where_that_cannot_be_looked_up():
    with pytest.raises(CorruptIndex, match="event 5"):
        decode_event(event_key(9), naming(AFTER, BEFORE))
