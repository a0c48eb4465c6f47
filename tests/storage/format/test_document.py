"""storage/format/document.py: an entry comes back as it was, and a damaged one not at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format.document import decode_entry, encode_entry, entry_key, entry_prefix
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.records import Entry, Kind

entries = st.builds(
    Entry,
    kind=st.sampled_from([Kind.AUTH, Kind.MEMBER]),
    what=st.sampled_from(["user", "role", "member"]),
    name=st.text(),
    document=st.binary(),
    secret=st.none() | st.binary(),
)


@settings(deadline=None)
@given(entries)
def test_an_entry_comes_back_as_it_was(entry):
    key = entry_key(entry.what, entry.name)
    assert decode_entry(key, encode_entry(key, entry)) == entry


@given(st.text(), st.text())
def test_each_name_has_a_key_of_its_own_and_none_is_too_long(one, other):
    key = entry_key("user", one)
    assert key.startswith(entry_prefix("user"))
    assert len(key) <= 511
    assert (key == entry_key("user", other)) == (one == other)


def test_every_flipped_bit_is_refused():
    key = entry_key("user", "al")
    row = encode_entry(key, Entry(Kind.AUTH, "user", "al", b"{}", b"hash"))
    for bit in range(8 * len(row)):
        flipped = bytearray(row)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptIndex):
            decode_entry(key, bytes(flipped))
    for length in range(len(row)):
        with pytest.raises(CorruptIndex):
            decode_entry(key, row[:length])
    with pytest.raises(CorruptIndex):
        decode_entry(entry_key("user", "bo"), row)
