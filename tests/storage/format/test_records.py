"""records.py: a decided change comes back as it was, and nothing else is taken for one."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format.records import (
    CHANGES,
    DOCUMENTS,
    Change,
    ClockOffset,
    Document,
    Kind,
    LoggedSetting,
    Term,
    UnknownRecord,
    decode_record,
    encode_record,
)

KNOWN = {*CHANGES, *DOCUMENTS, Kind.TERM, Kind.SETTING, Kind.CLOCK}

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
documents = st.builds(
    Document,
    kind=st.sampled_from(sorted(DOCUMENTS)),
    what=st.text(),
    name=st.text(),
    content=st.none() | st.binary(),
    secret=st.none() | st.binary(),
)
records = (
    changes
    | documents
    | st.builds(Term, uint64s)
    | st.builds(LoggedSetting, name=st.text(), value=st.integers())
    | st.builds(ClockOffset, st.integers(-(2**63), 2**63 - 1))
)

CHANGE = Change(Kind.SET, 7, b"/a\xff", b"\x00v", False, 7, 1_700_000_000_000_000_001, True)
DOCUMENT = Document(Kind.AUTH, "user", "al", b"{}", b"hash")


@settings(deadline=None)
@given(records)
def test_a_record_comes_back_as_it_was(record):
    decoded = decode_record(cbor2.loads(encode_record(record)))
    assert decoded == record
    assert type(decoded) is type(record)


def test_a_change_has_the_documented_fields_in_their_order():
    assert cbor2.loads(encode_record(CHANGE)) == [
        *(1, 7, b"/a\xff", b"\x00v", False, 7, 1_700_000_000_000_000_001, True, None)
    ]


def test_integers_and_lengths_of_a_change_are_written_in_the_widest_form():
    written = encode_record(CHANGE._replace(dir=True))
    assert written == (
        b"\x89\x01\x1b\0\0\0\0\0\0\0\x07\x5a\0\0\0\x03/a\xff\x5a\0\0\0\x02\0v\xf5"
        b"\x1b\0\0\0\0\0\0\0\x07\x1b" + CHANGE.expiration_ns.to_bytes(8, "big") + b"\xf5\xf6"
    )
    removal = encode_record(Change(Kind.EXPIRE, 7, b"/a", None, False, 7))
    assert len(removal) == 30 + len(b"/a"), "no more than a batch reckons with"


@settings(deadline=None)
@given(changes)
def test_a_change_in_the_shortest_form_of_older_versions_is_read(change):
    fields = [*change._replace(expiration_ns=change.expiration_ns or None), None]
    assert decode_record(cbor2.loads(cbor2.dumps(fields))) == change


def test_a_document_has_the_documented_fields_in_their_order():
    assert cbor2.loads(encode_record(DOCUMENT)) == [17, "user", "al", b"{}", b"hash", None]


def test_no_expiration_is_written_as_nil():
    assert cbor2.loads(encode_record(CHANGE._replace(expiration_ns=0)))[6] is None


def test_a_record_that_has_grown_at_its_end_is_read():
    for record in (CHANGE, DOCUMENT):
        later = [*cbor2.loads(encode_record(record)), "a later version's field"]
        assert decode_record(later) == record


@pytest.mark.parametrize("kind", [kind for kind in range(-1, 300) if kind not in KNOWN])
def test_an_unknown_kind_is_refused(kind):
    for record in (CHANGE, DOCUMENT, Term(1), LoggedSetting("history_limit", 1)):
        item = cbor2.loads(encode_record(record))
        with pytest.raises(UnknownRecord):
            decode_record([kind, *item[1:]])


@pytest.mark.parametrize("place", range(9))
def test_a_field_of_another_type_is_refused(place):
    item = cbor2.loads(encode_record(CHANGE))
    item[place] = "text"
    with pytest.raises(UnknownRecord):
        decode_record(item)


@pytest.mark.parametrize("place", range(6))
def test_a_field_of_a_document_of_another_type_is_refused(place):
    item = cbor2.loads(encode_record(DOCUMENT))
    item[place] = 1.5
    with pytest.raises(UnknownRecord):
        decode_record(item)


@pytest.mark.parametrize("length", range(9))
def test_a_change_that_lacks_fields_is_refused(length):
    with pytest.raises(UnknownRecord):
        decode_record(cbor2.loads(encode_record(CHANGE))[:length])
