"""storage/format/document.py: a document comes back as it was, and a damaged one not at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format.document import (
    decode_document,
    document_key,
    document_prefix,
    encode_document,
)
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.records import Document, Kind

documents = st.builds(
    Document,
    kind=st.sampled_from([Kind.AUTH, Kind.MEMBER]),
    what=st.sampled_from(["user", "role", "member"]),
    name=st.text(),
    content=st.binary(),
    secret=st.none() | st.binary(),
)


@settings(deadline=None)
@given(documents)
def test_a_document_comes_back_as_it_was(document):
    key = document_key(document.what, document.name)
    assert decode_document(key, encode_document(key, document)) == document


@given(st.text(), st.text())
def test_each_name_has_a_key_of_its_own_and_none_is_too_long(one, other):
    key = document_key("user", one)
    assert key.startswith(document_prefix("user"))
    assert len(key) <= 511
    assert (key == document_key("user", other)) == (one == other)


def test_every_flipped_bit_is_refused():
    key = document_key("user", "al")
    row = encode_document(key, Document(Kind.AUTH, "user", "al", b"{}", b"hash"))
    for bit in range(8 * len(row)):
        flipped = bytearray(row)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptIndex):
            decode_document(key, bytes(flipped))
    for length in range(len(row)):
        with pytest.raises(CorruptIndex):
            decode_document(key, row[:length])
    with pytest.raises(CorruptIndex):
        decode_document(document_key("user", "bo"), row)
