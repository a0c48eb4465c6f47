"""The file FORMAT: what is written is read back, and nothing else."""

import pytest

from kvd.storage.format.identity import decode_format, encode_format

FIELDS = {"format": 1, "min_reader": 1, "store_uuid": "00" * 16, "log": "begun"}


def test_what_is_written_is_read_back():
    assert decode_format(encode_format(FIELDS)) == FIELDS


@pytest.mark.parametrize("place", range(len(encode_format(FIELDS)) - 1))
def test_a_flipped_bit_is_found(place):
    data = bytearray(encode_format(FIELDS))
    data[place] ^= 1
    with pytest.raises(ValueError, match="fails its checksum"):
        decode_format(bytes(data))


@pytest.mark.parametrize("length", range(len(encode_format(FIELDS)) - 1))
def test_a_part_of_it_is_refused(length):
    with pytest.raises(ValueError, match="fails its checksum"):
        decode_format(encode_format(FIELDS)[:length])


@pytest.mark.parametrize("data", [b"[]\n0d4cbb29\n", b"{]\n98c89f8b\n"])
def test_what_is_no_object_is_refused(data):
    with pytest.raises(ValueError, match="is not in the form of a FORMAT"):
        decode_format(data)
