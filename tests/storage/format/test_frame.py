"""storage/format/frame.py: what is encoded comes back, and nothing else passes for it."""

from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.storage.format import frame
from kvd.storage.format.frame import FrameState, SegmentHeader

SALT = 0x1122334455667788
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
HEADER = SegmentHeader(
    store_uuid=bytes(range(16)),
    number=3,
    first_seq=673,
    first_index=5100,
    chain=0xDEADBEEF,
    salt=SALT,
    created_ns=1_700_000_000_000_000_000,
)


def encode(payload=b"payload", *, seq=7, chain=5, count=2, flags=0, salt=SALT):
    return frame.encode_frame(
        payload, seq=seq, first_index=9, count=count, flags=flags, chain=chain, salt=salt
    )


@settings(deadline=None)
@given(
    st.binary(max_size=300),
    st.fixed_dictionaries(
        {
            "seq": U64,
            "first_index": U64,
            "count": st.integers(0, 2**24 - 1),
            "flags": st.integers(0, 255),
            "chain": U32,
        }
    ),
    U64,
)
def test_a_frame_comes_back_as_it_was(payload, fields, salt):
    data = frame.encode_frame(payload, **fields, salt=salt)
    parsed = frame.parse(b"\0" * 8 + data + b"\0" * 40, 8, salt)
    crc = frame.body_crc(data)
    assert parsed == frame.Parsed(
        FrameState.INTACT,
        len(data),
        seq=fields["seq"],
        first_index=fields["first_index"],
        records=fields["count"],
        flags=fields["flags"],
        chain=fields["chain"],
        crc=crc,
        payload=payload,
    )
    assert len(data) == frame.frame_size(len(payload))
    assert len(data) % 8 == 0


@settings(deadline=None)
@given(
    st.builds(
        SegmentHeader,
        store_uuid=st.binary(min_size=16, max_size=16),
        number=U64,
        first_seq=U64,
        first_index=U64,
        chain=U32,
        salt=U64,
        created_ns=U64,
    )
)
def test_a_header_comes_back_as_it_was(header):
    page = frame.encode_segment_header(header, magic=frame.WAL_MAGIC)
    assert len(page) == frame.PAGE_SIZE
    assert frame.decode_segment_header(page, magic=frame.WAL_MAGIC) == header


def test_the_bytes_of_a_frame_are_those_of_the_format():
    data = encode(b"abc", seq=7, chain=5, count=2, flags=1)
    head = (
        b"KVDF"
        + (3).to_bytes(4, "little")
        + (7).to_bytes(8, "little")
        + (9).to_bytes(8, "little")
        + (2).to_bytes(3, "little")
        + b"\x01"
        + (5).to_bytes(4, "little")
    )
    head += crc32(head, SALT & 0xFFFFFFFF).to_bytes(4, "little") + b"\0\0\0\0"
    body = b"abc" + crc32(b"abc", crc32(head)).to_bytes(4, "little")
    assert data == head + body + b"\0"


def test_the_bytes_of_a_header_are_those_of_the_format():
    page = frame.encode_segment_header(HEADER, magic=frame.WAL_MAGIC)
    expected = (
        b"KVDWAL01"
        + (1).to_bytes(4, "little")
        + (0).to_bytes(4, "little")
        + bytes(range(16))
        + (3).to_bytes(8, "little")
        + (673).to_bytes(8, "little")
        + (5100).to_bytes(8, "little")
        + (0xDEADBEEF).to_bytes(4, "little")
        + SALT.to_bytes(8, "little")
        + (1_700_000_000_000_000_000).to_bytes(8, "little")
    )
    assert len(expected) == 76
    expected += crc32(expected).to_bytes(4, "little")
    assert page == expected.ljust(4096, b"\0")


def test_every_flipped_bit_of_a_frame_is_seen():
    data = encode(b"some payload of a frame")
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert frame.parse(bytes(flipped), 0, SALT).state is FrameState.BAD, f"bit {bit}"


def test_every_prefix_of_a_frame_asks_for_more():
    data = encode(b"some payload of a frame")
    for length in range(len(data)):
        parsed = frame.parse(data[:length], 0, SALT)
        assert parsed.state is FrameState.SHORT
        assert length < parsed.size <= len(data)


def test_a_frame_of_another_salt_is_bad():
    assert frame.parse(encode(salt=SALT + 1), 0, SALT).state is FrameState.BAD


def test_zeros_are_the_end():
    assert frame.parse(bytes(64), 8, SALT).state is FrameState.END


def test_every_flipped_bit_of_a_header_is_refused():
    page = frame.encode_segment_header(HEADER, magic=frame.WAL_MAGIC)
    for bit in range(len(page) * 8):
        flipped = bytearray(page)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"header|starts with"):
            frame.decode_segment_header(bytes(flipped), magic=frame.WAL_MAGIC)


def test_an_unknown_format_is_refused_by_its_number():
    page = bytearray(frame.encode_segment_header(HEADER, magic=frame.WAL_MAGIC))
    page[8] = 2
    page[76:80] = crc32(page[:76]).to_bytes(4, "little")
    with pytest.raises(ValueError, match="format 2"):
        frame.decode_segment_header(bytes(page), magic=frame.WAL_MAGIC)


def test_a_snapshot_is_no_segment():
    page = frame.encode_segment_header(HEADER, magic=frame.SNAPSHOT_MAGIC)
    with pytest.raises(ValueError, match="KVDSNAP1"):
        frame.decode_segment_header(page, magic=frame.WAL_MAGIC)


def test_what_a_reader_refuses_is_not_written():
    with pytest.raises(ValueError, match="16777215 records"):
        encode(count=2**24)


def test_an_intact_frame_is_found_among_garbage():
    garbage = b"KVDF" * 10
    data = garbage + encode(seq=8) + garbage
    assert frame.find_proof(data, 0, SALT, after_seq=7) == len(garbage)


@pytest.mark.parametrize(
    ("data", "after_seq"),
    [
        pytest.param(encode(seq=7), 7, id="not of a higher seq"),
        pytest.param(b"1234" + encode(seq=8) + b"1234", 7, id="not at a multiple of 8"),
        pytest.param(encode(seq=8, salt=1), 7, id="not of this segment"),
        pytest.param(encode(seq=8)[:-8], 7, id="not complete"),
        pytest.param(b"", 0, id="nothing at all"),
    ],
)
def test_what_proves_nothing_is_not_found(data, after_seq):
    assert frame.find_proof(data, 0, SALT, after_seq) is None


@pytest.mark.parametrize("length", range(20, 29))
def test_the_crc_before_an_end_is_recognised_whatever_the_padding(length):
    data = encode(b"x" * length)
    crc = frame.body_crc(data)
    assert frame.ends_with_crc(data[-12:], crc)
    assert not frame.ends_with_crc(data[-12:], crc ^ 1)
    assert not frame.ends_with_crc(bytes(12), crc)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_judged_without_an_error(data):
    assert frame.parse(data, 0, SALT).state in FrameState
    frame.find_proof(data, 0, SALT, 0)
