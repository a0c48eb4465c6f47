"""outbox.py: what is sent are the pieces, in their order, and each is held until it is sent."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.http.sending.outbox import Outbox
from kvd.limits.memory_budget import MemoryBudget, Piece

MIB = 1 << 20


@pytest.fixture
def memory():
    return MemoryBudget(64 * MIB)


def sent(outbox):
    """All visits, each as what it sends."""
    visits = []
    while outbox:
        visits.append([bytes(one) for one in outbox.slices()])
    return visits


def dechunked(data):
    """The body of a chunked response, without its last chunk."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        assert data[length : length + 2] == b"\r\n"
        body, data = body + data[:length], data[length + 2 :]
    return body


@given(st.lists(st.tuples(st.binary(max_size=80_000), st.booleans()), max_size=4))
def test_pieces_are_sent_whole_and_in_order(pieces):
    memory, outbox = MemoryBudget(64 * MIB), Outbox()
    for data, chunked in pieces:
        outbox.add(Piece(data, memory), chunked=chunked)
    assert outbox.unsent_bytes == memory.answers == sum(len(data) for data, _ in pieces)
    data = b"".join(slice_ for visit in sent(outbox) for slice_ in visit)
    for expected, chunked in pieces:
        if not chunked:
            assert data.startswith(expected)
            data = data[len(expected) :]
            continue
        taken = 0
        while taken < len(expected):
            length = int(data.partition(b"\r\n")[0], 16)
            end = data.index(b"\r\n") + 2 + length + 2
            assert dechunked(data[:end]) == expected[taken : taken + length]
            taken, data = taken + length, data[end:]
    assert data == b""
    assert (outbox.unsent_bytes, memory.answers) == (0, 0)


def test_a_visit_ends_however_fast_the_client_reads(memory):
    outbox = Outbox()
    outbox.add(Piece(bytes(MIB), memory))
    visits = sent(outbox)
    assert [sum(map(len, visit)) for visit in visits] == [MIB // 4] * 4
    assert max(len(one) for visit in visits for one in visit) <= 32 << 10
    assert outbox.sent_bytes == MIB


def test_a_value_is_escaped_as_it_is_sent_and_no_character_is_cut(memory):
    value = ('\N{SNOWMAN}\0"\\é' * 5000).encode()
    outbox = Outbox()
    outbox.add(Piece(value, memory, escapes=True))
    slices = [one for visit in sent(outbox) for one in visit]
    assert len(slices) > 1
    text = b"".join(slices)
    assert all(one.decode() for one in slices)
    assert json.loads(b'"%b"' % text) == value.decode()


def test_bytes_are_counted_once_for_all_clients_until_the_last_has_them(memory):
    piece = Piece(bytes(MIB), memory)
    fast, slow = Outbox(), Outbox()
    fast.add(piece)
    slow.add(piece)
    assert memory.answers == MIB
    sent(fast)
    list(slow.slices())
    assert memory.answers == MIB
    slow.clear()
    assert (memory.answers, slow.unsent_bytes, bool(slow)) == (0, 0, False)


def test_after_it_was_cleared_the_next_piece_begins_at_its_start(memory):
    outbox = Outbox()
    outbox.add(Piece(bytes(MIB), memory))
    list(outbox.slices())
    outbox.clear()
    outbox.add(Piece(b"next", memory))
    assert sent(outbox) == [[b"next"]]


def test_an_empty_piece_is_none(memory):
    outbox = Outbox()
    outbox.add(Piece(b"", memory), chunked=True)  # an empty chunk would end the body
    assert not outbox
