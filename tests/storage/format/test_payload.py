"""payload.py: a batch comes back as it was, and its chain names all before it."""

from hashlib import blake2b, sha256

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format.payload import (
    CHAIN_START,
    SHA256_RECORD_BYTES,
    VERSION,
    VERSION_SHA256,
    Payload,
    UnknownVersion,
    decode_payload,
    decode_with_rids,
    encode_payload,
    next_chain,
)
from kvd.storage.format.records import (
    RID_BYTES,
    Change,
    Document,
    Kind,
    Term,
    UnknownRecord,
    encode_record,
    with_rid,
)
from tests.storage.format.test_records import CHANGE, records, uint64s

payloads = st.builds(
    Payload,
    term=uint64s,
    seq=uint64s,
    prev_chain=st.binary(min_size=8, max_size=8),
    pos=uint64s,
    first_index=uint64s,
    time_ns=uint64s,
    writer=uint64s,
    records=st.lists(records, max_size=5),
    clock_offset_ns=st.just(0) | st.integers(-(2**63), 2**63 - 1),
)

FIELDS = Payload(3, 9, b"12345678", 12, 7, 1_700_000_000_000_000_000, 2**64 - 1, [])


def encode(payload):
    encoded = [encode_record(record) for record in payload.records]
    return encode_payload(**payload._replace(records=encoded)._asdict())


@settings(deadline=None)
@given(payloads)
def test_a_payload_comes_back_as_it_was(payload):
    assert decode_payload(encode(payload)) == payload


@settings(deadline=None)
@given(st.lists(st.tuples(records, st.none() | st.binary(min_size=16, max_size=16)), max_size=5))
def test_rids_come_back_beside_what_is_the_same_without_them(pairs):
    pairs = [
        (record, rid if isinstance(record, Change | Document) else None) for record, rid in pairs
    ]
    encoded = [encode_record(record) for record, _ in pairs]
    plain = encode_payload(**FIELDS._replace(records=encoded)._asdict())
    named = [
        record if rid is None else with_rid(record, rid)
        for record, (_, rid) in zip(encoded, pairs, strict=True)
    ]
    payload = encode_payload(**FIELDS._replace(records=named)._asdict())
    assert decode_payload(payload) == decode_payload(plain)
    assert decode_with_rids(payload)[1] == [rid for _, rid in pairs]
    assert len(payload) - len(plain) == RID_BYTES * sum(rid is not None for _, rid in pairs)


@pytest.mark.parametrize(
    "count", [0, 1, 2, 23, 24, 25, 255, 256, 257, 1000, 65_535, 65_536, 70_000]
)
def test_a_payload_is_the_array_that_cbor2_reads(count):
    items = [[int(Kind.TERM), number] for number in range(count)]
    encoded = [encode_record(Term(number)) for number in range(count)]
    written = encode_payload(**FIELDS._replace(records=encoded)._asdict())
    assert cbor2.loads(written) == [VERSION, *FIELDS[:-2], items]
    assert len(decode_payload(written).records) == count


def test_a_payload_that_has_grown_at_its_end_is_read():
    later = cbor2.dumps([VERSION, *FIELDS[:-2], [], "a later version's field"])
    assert decode_payload(later) == FIELDS


def test_a_store_whose_clock_was_stepped_logs_its_offset_with_each_batch():
    stepped = FIELDS._replace(clock_offset_ns=-5)
    assert cbor2.loads(encode(stepped)) == [VERSION, *FIELDS[:-2], [], -5]
    assert stepped.wall_ns == FIELDS.time_ns - 5


@pytest.mark.parametrize("version", [0, -1, True, None, b"\x01", 1.0])
def test_what_is_no_version_is_refused(version):
    with pytest.raises(UnknownRecord) as refused:
        decode_payload(cbor2.dumps([version, *FIELDS[:-2], []]))
    assert refused.type is UnknownRecord


@pytest.mark.parametrize("version", [VERSION_SHA256 + 1, 23, 24, 2**64])
def test_a_payload_of_a_later_version_is_refused_as_such(version):
    for later in ([*FIELDS[:-2], []], ["of another shape"], []):
        with pytest.raises(UnknownVersion, match=f"version {version},"):
            decode_payload(cbor2.dumps([version, *later]))


def test_a_payload_with_one_unknown_record_is_refused():
    items = [[16, 1], [21, "later"], [16, 2]]
    with pytest.raises(UnknownRecord):
        decode_payload(cbor2.dumps([VERSION, *FIELDS[:-2], items]))


@pytest.mark.parametrize("record", [7, None, "text", cbor2.CBORTag(9, [16, 1]), {}], ids=repr)
def test_a_record_that_is_no_array_is_refused(record):
    with pytest.raises(UnknownRecord):
        decode_payload(cbor2.dumps([VERSION, *FIELDS[:-2], [record]]))


def test_no_beginning_of_a_payload_is_taken_for_one():
    data = encode(FIELDS._replace(records=[CHANGE, Term(4)]))
    for length in range(len(data)):
        with pytest.raises(UnknownRecord):
            decode_payload(data[:length])


@settings(deadline=None)
@given(
    st.binary() | st.tuples(st.sampled_from([b"\x89\x01", b"\x89\x02"]), st.binary()).map(b"".join)
)
def test_any_other_bytes_are_refused_and_nothing_worse(data):
    with pytest.raises(UnknownRecord):
        decode_payload(data)


def chained_by_sha256(encoded):
    """The same payload, of version 2."""
    assert encoded[1] == VERSION
    return encoded[:1] + bytes((VERSION_SHA256,)) + encoded[2:]


@settings(deadline=None)
@given(payloads, st.binary(min_size=8, max_size=8), st.booleans(), st.data())
def test_the_chain_names_all_of_the_history(payload, other, is_sha256, data):
    encoded = encode(payload)
    if is_sha256:
        encoded = chained_by_sha256(encoded)
    chain = next_chain(CHAIN_START, encoded)
    assert len(chain) == 8
    assert next_chain(CHAIN_START, encoded) == chain
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    flipped = bytearray(encoded)
    flipped[bit // 8] ^= 1 << bit % 8
    assert next_chain(CHAIN_START, bytes(flipped)) != chain
    if other != CHAIN_START:
        assert next_chain(other, encoded) != chain


@pytest.mark.parametrize("length", [0, 1, 16_000, 17_000, 300_000])
def test_the_version_of_a_payload_says_how_it_is_chained(length):
    first = encode(FIELDS._replace(records=[CHANGE._replace(value=b"v" * length)]))
    second = chained_by_sha256(first)
    assert decode_payload(second) == decode_payload(first)
    before = b"\x01\x02\x03\x04\x05\x06\x07\x08"
    assert next_chain(before, first) == blake2b(before + first, digest_size=8).digest()
    assert next_chain(before, second) == sha256(before + second).digest()[:8]


@pytest.mark.parametrize(
    ("lengths", "version"),
    [
        ([], VERSION),
        ([SHA256_RECORD_BYTES - 1], VERSION),
        ([SHA256_RECORD_BYTES], VERSION_SHA256),
        ([100] * 5000, VERSION),
        ([100, 2 * SHA256_RECORD_BYTES], VERSION_SHA256),
        ([0, 2 * SHA256_RECORD_BYTES - 1], VERSION),
    ],
)
def test_only_large_records_are_chained_by_sha256_and_only_if_allowed(lengths, version):
    fields = FIELDS._replace(records=[bytes(length) for length in lengths])._asdict()
    assert encode_payload(**fields, with_sha256=True)[1] == version
    assert encode_payload(**fields)[1] == VERSION
