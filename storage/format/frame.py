"""The bytes of a log segment and of a snapshot: one header page, then frames. Pure.

All numbers are little-endian. A file starts with one page of 4096 bytes, zeros after byte 80:

      0  8s   magic                            8  u32  format (1)        12  u32  flags (0)
     16  16s  store uuid                      32  u64  segment number    40  u64  first frame seq
     48  u64  first etcd index                56  u32  crc of the last frame before this segment
     60  u64  salt (random, never shown)      68  u64  created, ns       76  u32  crc32 of 0..75

Then frames without gaps, each starting at a multiple of 8, and zeros after the last:

      0  4s   "KVDF"                           4  u32  payload length
      8  u64  frame seq (+1 each)             16  u64  first etcd index in it (or the next one)
     24  u24  record count, u8 flags          28  u32  chain: body crc of the frame before
     32  u32  header crc: of 0..31, seeded with the low 32 bits of the salt
     36  u32  zero; in a frame that was not synced, how many before it were not durable either
     40  payload, u32 body crc (of the payload, seeded with the crc32 of 0..39), zeros to 8

- Every bit is under a checksum or must be zero.
- The header has a crc of its own, so that a length can be trusted while its body is bad.
- The chain and the sequence number make a lost, doubled or moved frame visible; the salt keeps
  a client from planting, inside a value, bytes that pass for a frame of this segment.
"""

import struct
from enum import Enum, auto
from typing import NamedTuple
from zlib import crc32

FORMAT_VERSION = 1
PAGE_SIZE = 4096
WAL_MAGIC = b"KVDWAL01"
SNAPSHOT_MAGIC = b"KVDSNAP1"
FRAME_MAGIC = b"KVDF"

NOSYNC = 1  # the writer has not waited for the disk: neither for it nor for some before it
SEAL = 2  # the last frame of a segment: no payload, no records
SNAPMARK = 4  # reserved; readers accept it
SNAP = 8  # a frame of a snapshot
HEARTBEAT = 16  # proves the frame before it: no payload, no records

_PAGE = struct.Struct("<8sII16sQQQIQQI")
_HEADER = struct.Struct("<4sIQQIIII")
_CRC = struct.Struct("<I")
# A header up to its crc, and from there.
_HEAD = struct.Struct("<4sIQQII")
_HEAD_END = struct.Struct("<II")
assert _PAGE.size == 80
assert _HEADER.size == 40
assert _HEAD.size + _HEAD_END.size == 40

HEADER_SIZE = _HEADER.size
OVERHEAD = HEADER_SIZE + _CRC.size
SEAL_SIZE = 48
# A sanity bound far above what is written: a snapshot's row may have 48 MiB.
MAX_PAYLOAD = 256 * 1024 * 1024
MAX_COUNT = 2**24 - 1
_ZEROS = bytes(PAGE_SIZE)
_pack_head, _pack_head_end = _HEAD.pack, _HEAD_END.pack
# What ends a frame whose payload is so long, modulo 8: the body crc, and zeros up to 8 bytes.
_ENDS = tuple(struct.Struct(f"<I{-(length + OVERHEAD) % 8}x").pack for length in range(8))


class SegmentHeader(NamedTuple):
    """The first page of a file.

    `chain` is the body crc of the last frame of the segment before, 0 for the first.
    """

    store_uuid: bytes
    number: int
    first_seq: int
    first_index: int
    chain: int
    salt: int
    created_ns: int


class Position(NamedTuple):
    """The end of frame `seq`, where the next frame goes; `crc` is that frame's chain value."""

    segment: int
    offset: int
    seq: int
    crc: int


START = Position(1, PAGE_SIZE, 0, 0)
"""Where the first frame of all goes."""


class FrameState(Enum):
    """The bytes at a place where a frame may start."""

    INTACT = auto()  # a frame whose checksums hold
    END = auto()  # zeros
    SHORT = auto()  # the buffer ends before the frame does
    BAD = auto()  # anything else


class Parsed(NamedTuple):
    """The outcome of `parse`.

    `size` is the frame's length on the disk with its padding; for SHORT, the bytes that are needed
    to go on. `crc` and `payload` are set when INTACT, `reason` when BAD; the fields in between hold
    for INTACT, and where the header is good (`seq` is then above 0).
    """

    state: FrameState
    size: int
    seq: int = 0
    first_index: int = 0
    records: int = 0
    flags: int = 0
    chain: int = 0
    crc: int = 0
    payload: bytes = b""
    reason: str = ""


_END = Parsed(FrameState.END, 0)
_INTACT = FrameState.INTACT
_new = tuple.__new__


def encode_segment_header(header: SegmentHeader, *, magic: bytes) -> bytes:
    """Return the first page of a file."""
    fields = (
        magic,
        FORMAT_VERSION,
        0,
        header.store_uuid,
        header.number,
        header.first_seq,
        header.first_index,
        header.chain,
        header.salt,
        header.created_ns,
    )
    body = _PAGE.pack(*fields, 0)[:-4]
    return (body + _CRC.pack(crc32(body))).ljust(PAGE_SIZE, b"\0")


def decode_segment_header(page: bytes, *, magic: bytes) -> SegmentHeader:
    """Return what the first page of a file says.

    Raises:
        ValueError: the page is not one of ours; the message says expected and found.
    """
    if len(page) < PAGE_SIZE:
        raise ValueError(f"the header has {PAGE_SIZE} bytes, the file only {len(page)}")
    found_magic, version, flags, *fields, crc = _PAGE.unpack_from(page)
    if found_magic != magic:
        raise ValueError(f"the file starts with {found_magic!r}, expected {magic!r}")
    expected = crc32(page[: _PAGE.size - 4])
    if crc != expected:
        raise ValueError(f"the header's checksum is {crc:08x}, expected {expected:08x}")
    if version != FORMAT_VERSION or flags:
        raise ValueError(
            f"format {version} with flags {flags:x} is not known here, only {FORMAT_VERSION}, 0"
        )
    if page[_PAGE.size : PAGE_SIZE] != _ZEROS[_PAGE.size :]:
        raise ValueError("the header is not followed by zeros")
    return SegmentHeader(*fields)


def frame_size(payload_length: int) -> int:
    """Return the bytes a frame takes on the disk, padding included."""
    return (payload_length + OVERHEAD + 7) & ~7


def essential_size(payload_length: int) -> int:
    """Return the bytes of a frame that make it intact: all but the padding."""
    return payload_length + OVERHEAD


def encode_frame(
    payload: bytes,
    *,
    seq: int,
    first_index: int,
    count: int,
    flags: int,
    chain: int,
    salt: int,
) -> bytes:
    """Return the bytes of one frame.

    Raises:
        ValueError: the payload or the count is larger than a reader accepts.
    """
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame takes {MAX_PAYLOAD} bytes, got {len(payload)}")
    if not 0 <= count <= MAX_COUNT:
        raise ValueError(f"a frame takes {MAX_COUNT} records, got {count}")
    return seal(payload, seq, first_index, count | flags << 24, chain, salt)[0]


def seal(  # noqa: PLR0917 -- the fields, in their order
    payload: bytes, seq: int, first_index: int, kind: int, chain: int, salt: int, behind: int = 0
) -> tuple[bytes, int]:
    """As `encode_frame`, with the body crc of the frame: the chain value of the next one.

    `kind` is the count, and the flags above its 24 bits; `behind` is for NOSYNC. Nothing is
    checked.
    """
    length = len(payload)
    head = _pack_head(FRAME_MAGIC, length, seq, first_index, kind, chain)
    head += _pack_head_end(crc32(head, salt & 0xFFFFFFFF), behind)
    crc = crc32(payload, crc32(head))
    return b"".join((head, payload, _ENDS[length % 8](crc))), crc


def body_crc(encoded: bytes) -> int:
    """Return the body crc of an encoded frame: the chain value of the next one."""
    (length,) = _CRC.unpack_from(encoded, 4)
    (crc,) = _CRC.unpack_from(encoded, HEADER_SIZE + length)
    return int(crc)


def ends_with_crc(before: bytes, crc: int) -> bool:
    """Tell whether a frame with body crc `crc` can end where `before` ends (cheap, no proof).

    Args:
        before: at least the 12 bytes before that place.
        crc: what the frame's body crc has to be.
    """
    found = _CRC.pack(crc)
    return any(
        before[: len(before) - pad].endswith(found) and before.endswith(_ZEROS[:pad])
        for pad in range(8)
    )


def parse(  # noqa: PLR0911 -- one per way to be bad, in one piece: it runs for each frame of a log
    buffer: bytes, offset: int, salt: int
) -> Parsed:
    """Judge the frame that starts at `offset`, by its checksums alone.

    Sequence and chain are for the caller to compare: they tell a frame in the wrong place from
    a damaged one.
    """
    body = offset + HEADER_SIZE
    head = buffer[offset:body]
    if len(head) < HEADER_SIZE:
        return Parsed(FrameState.SHORT, HEADER_SIZE)
    magic, length, seq, first_index, kind, chain, header_crc, _ = _HEADER.unpack(head)
    if magic != FRAME_MAGIC:
        if head == _ZEROS[:HEADER_SIZE]:
            return _END
        return Parsed(FrameState.BAD, 0, reason=f"starts with {magic!r}, expected {FRAME_MAGIC!r}")
    if header_crc != (expected := crc32(head[:32], salt & 0xFFFFFFFF)):
        reason = f"fails its header checksum ({header_crc:08x}, expected {expected:08x})"
        return Parsed(FrameState.BAD, 0, reason=reason)
    # From here on the length can be trusted.
    size = (length + OVERHEAD + 7) & ~7
    known = (size, seq, first_index, kind & MAX_COUNT, kind >> 24, chain)
    if offset + size > len(buffer):
        return Parsed(FrameState.SHORT, *known)
    body_end = body + length
    payload = buffer[body:body_end]
    (crc,) = _CRC.unpack_from(buffer, body_end)
    if crc != (expected := crc32(payload, crc32(head))):
        reason = f"fails its checksum ({crc:08x}, expected {expected:08x})"
        return Parsed(FrameState.BAD, *known, reason=reason)
    if any(buffer[body_end + _CRC.size : offset + size]):
        return Parsed(FrameState.BAD, *known, reason="is not followed by zeros to a multiple of 8")
    # Not by the named tuple's own constructor, which takes three times as long.
    return _new(Parsed, (_INTACT, *known, crc, payload, ""))


def find_proof(buffer: bytes, offset: int, salt: int, after_seq: int) -> int | None:
    """Return where a frame starts that proves that the one after `after_seq` had been durable.

    That is an intact one of a higher number; but one that was not synced proves only that those
    before it were durable which it does not count as `behind`.

    Args:
        buffer: bytes of a segment; its first byte has a place that is a multiple of 8.
        offset: where to begin looking.
        salt: the segment's.
        after_seq: frames up to this one do not count: a value may hold a copy of an old frame.
    """
    at = buffer.find(FRAME_MAGIC, offset)
    while at >= 0:
        if at % 8 == 0:
            parsed = parse(buffer, at, salt)
            if parsed.state is FrameState.INTACT and _durable_seq(parsed, buffer, at) > after_seq:
                return at
        at = buffer.find(FRAME_MAGIC, at + 1)
    return None


def _durable_seq(parsed: Parsed, buffer: bytes, at: int) -> int:
    """Return the frame up to which the log has been complete on the disk, by an intact one."""
    if not parsed.flags & NOSYNC:
        return parsed.seq
    behind: int = _CRC.unpack_from(buffer, at + HEADER_SIZE - _CRC.size)[0]
    return parsed.seq - 1 - behind
