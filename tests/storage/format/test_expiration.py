"""expiration.py: rows in the order of their ends, each for the node that it names."""

import pytest

from kvd.storage.format.expiration import (
    decode_path,
    expiration_key,
    expiration_of,
    expiration_row,
)
from kvd.storage.format.node import CorruptIndex

KEY = expiration_key(1_700_000_000_000_000_001, b"\0" * 8 + b"\0a")


def test_keys_are_in_the_order_of_time():
    times = [1, 255, 256, 2**32, 1_700_000_000_000_000_000, 2**63 - 1]
    keys = [expiration_key(time_ns, b"\xff") for time_ns in times]
    assert keys == sorted(keys)
    assert [expiration_of(key) for key in keys] == times


@pytest.mark.parametrize("path", [b"/a", b"/", b"/\xff\0", b"/" + b"n" * 70_000])
def test_a_path_comes_back_and_its_sum_is_that_of_the_row(path):
    crc, row = expiration_row(KEY, path)
    assert decode_path(KEY, row) == path
    assert int.from_bytes(row[:4], "little") == crc


def test_a_row_of_another_key_or_with_damage_is_refused():
    _, row = expiration_row(KEY, b"/a")
    others = [
        (expiration_key(1, b"\0a"), row),
        *((KEY, row[:length]) for length in range(len(row))),
    ]
    others += [(KEY, row[:at] + bytes([row[at] ^ 1]) + row[at + 1 :]) for at in range(len(row))]
    for key, damaged in others:
        with pytest.raises(CorruptIndex, match=key.hex()):
            decode_path(key, damaged)
