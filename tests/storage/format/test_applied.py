"""applied.py: how far an index goes comes back as it was, and is believed only when it is whole."""

import pytest

from kvd.storage.format.applied import (
    Applied,
    decode_history_bytes_max,
    decode_sums,
    encode_history_bytes_max,
)
from kvd.storage.format.frame import Position
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import ONE

APPLIED = Applied(9, b"12345678", 40, 3, 21, 1_700_000_000_000_000_000, 7, 500, 11)._replace(
    position=Position(2, 8192, 12, 0xFFFFFFFF)
)
SUMS = (5 * ONE + 1, 0, (1 << 70) + 3, ONE - 1)

offsets = pytest.mark.parametrize("offset_ns", [0, 1, -(2**63), 2**63 - 1])


@offsets
def test_it_comes_back_with_the_sums_and_without(offset_ns):
    applied = APPLIED._replace(clock_offset_ns=offset_ns)
    alone, with_sums = applied.encode(), applied.encode_with(SUMS)
    assert Applied.decode(alone) == Applied.decode(with_sums) == applied
    assert decode_sums(alone) is None
    assert decode_sums(with_sums) == SUMS
    assert applied.wall_ns == applied.time_ns + offset_ns


@offsets
@pytest.mark.parametrize("with_sums", [False, True])
def test_a_flipped_bit_and_another_length_are_refused(offset_ns, with_sums):
    applied = APPLIED._replace(clock_offset_ns=offset_ns)
    row = applied.encode_with(SUMS) if with_sums else applied.encode()
    damaged = [row[:length] for length in range(len(row))] + [row + b"\0"]
    for bit in range(8 * len(row)):
        flipped = bytearray(row)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    for one in damaged:
        with pytest.raises(CorruptIndex):
            Applied.decode(one)


def test_a_missing_row_is_damage():
    with pytest.raises(CorruptIndex):
        Applied.decode(None)


@pytest.mark.parametrize("number", [0, 1, 64 << 20, 2**64 - 1])
def test_the_limit_of_the_history_comes_back_or_is_refused(number):
    row = encode_history_bytes_max(number)
    assert decode_history_bytes_max(row) == number
    for damaged in (row[:-1], row + b"\0", row[:-1] + bytes([row[-1] ^ 1]), b""):
        with pytest.raises(CorruptIndex):
            decode_history_bytes_max(damaged)
