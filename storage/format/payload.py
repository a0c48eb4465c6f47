"""The payload of a batch of records, and the chain of payloads.

A payload is one batch, the same bytes on every replica of a store; the frame around it is physical:

    [version, term, seq, prev_chain, pos, first_index, time_ns, writer, records]

`seq` counts payloads, `pos` counts records up to and including this batch, `first_index` is the
etcd index of the first change in it (or the next one to be given, where it holds none), `writer` is
the member id. `prev_chain` is the chain value after the payload before: 8 bytes of a hash over the
previous chain value and the previous payload, so equal chains at one `seq` mean equal histories.
The version, which is the second byte, says by which hash the payload itself is to be chained:

    1    blake2b with a digest of 8 bytes
    2    the first 8 bytes of SHA-256: for payloads of large records, where the processor has
         instructions for it (half the time of blake2b; without them it is twice)

Both are read for ever, in any order. Readers that know version 1 only refuse the other one.

Times and expirations are the store's, in nanoseconds: the machine's clock less the offset of the
last record `clock`, 0 before the first, so that they go on evenly over its steps. A batch at whose
end that is not 0 has it as a tenth item.
The array may grow at its end.
"""

from __future__ import annotations

from hashlib import blake2b, sha256
from struct import Struct
from typing import Any, NamedTuple

import cbor2

from kvd.storage.format.records import Record, UnknownRecord, decode_record, rid_of

VERSION = 1
VERSION_SHA256 = 2
SHA256_RECORD_BYTES = 4 << 10
"""So long the records of a payload of version 2 are, on an average, at least: what is shorter is
hashed in less time than the difference is worth, and is read by older versions, too."""
_VERSIONS = (VERSION, VERSION_SHA256)
_new = tuple.__new__
# A longer payload has a byte here.
_SHORT_BYTES, _SHORT_END = 16 << 10, (16 << 10) + 1
CHAIN_START = bytes(8)
# The items of a payload before its records, and the head of these: it is an array of nine items or
# ten, and what begins integers of 64 bits, eight bytes, and an array with a length of 32 bits.
_pack_payload = Struct(">BBBQBQB8sBQBQBQBQBI").pack
_NINE, _TEN, _U64, _EIGHT_BYTES, _ARRAY = 0x89, 0x8A, 0x1B, 0x48, 0x9A

_PAYLOAD_TYPES = (int, int, int, bytes, int, int, int, int, list)


class UnknownVersion(UnknownRecord):
    """A payload has a version that only later versions of the program know."""


class Payload(NamedTuple):
    """One decoded batch of the log; the fields are those of the module's docstring."""

    term: int
    seq: int
    prev_chain: bytes
    pos: int
    first_index: int
    time_ns: int
    writer: int
    records: list[Record]
    clock_offset_ns: int = 0

    @property
    def wall_ns(self) -> int:
        """The time of the batch on the wall clock, in nanoseconds since 1970."""
        return self.time_ns + self.clock_offset_ns


def encode_payload(  # noqa: PLR0917 -- the fields, in their order
    term: int,
    seq: int,
    prev_chain: bytes,
    pos: int,
    first_index: int,
    time_ns: int,
    writer: int,
    records: list[bytes],
    clock_offset_ns: int = 0,
    with_sha256: bool = False,
) -> bytes:
    """Return the payload of a batch whose records are encoded already.

    `with_sha256` allows version 2, where the records are large.
    """
    version, count = VERSION, len(records)
    if with_sha256 and sum(map(len, records)) >= SHA256_RECORD_BYTES * (count or 1):
        version = VERSION_SHA256
    head = _pack_payload(
        _TEN if clock_offset_ns else _NINE, version,
        _U64, term, _U64, seq, _EIGHT_BYTES, prev_chain, _U64, pos,
        _U64, first_index, _U64, time_ns, _U64, writer, _ARRAY, count,
    )  # fmt: skip
    if not clock_offset_ns:
        return b"".join((head, *records))
    return b"".join((head, *records, cbor2.dumps(clock_offset_ns)))


def decode_payload(data: bytes) -> Payload:
    """Return the batch in a payload.

    Raises:
        UnknownRecord: the payload is not one that this version can read; `UnknownVersion` where
            a later one can.
    """
    return _decode(data)[0]


def decode_with_rids(data: bytes) -> tuple[Payload, list[bytes | None]]:
    """Return the batch in a payload, and the rid of each of its records.

    Raises:
        UnknownRecord: as for `decode_payload`.
    """
    payload, items = _decode(data)
    return payload, [rid_of(item) for item in items]


def _decode(data: bytes) -> tuple[Payload, list[Any]]:
    """Return the batch in a payload, and the arrays of its records."""
    try:
        item: Any = cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError) as error:
        raise UnknownRecord(f"a payload that is not CBOR: {error}") from None
    if isinstance(item, list) and tuple(map(type, item[:9])) == _PAYLOAD_TYPES:
        version, term, seq, prev_chain, pos, first_index, time_ns, writer, items = item[:9]
        if version in _VERSIONS:
            records = [decode_record(record) for record in items]
            offset_ns = item[9] if len(item) > 9 and type(item[9]) is int else 0
            fields = (
                *(term, seq, prev_chain, pos, first_index, time_ns, writer, records),
                offset_ns,
            )
            return _new(Payload, fields), items
    if isinstance(item, list) and item and type(item[0]) is int and item[0] > _VERSIONS[-1]:
        raise UnknownVersion(f"a payload of version {item[0]}, known are {_VERSIONS}")
    raise UnknownRecord("a payload of an unknown version or shape")


def next_chain(prev_chain: bytes, payload: bytes) -> bytes:
    """Return the chain value after `payload`: 8 bytes that name the whole history so far."""
    if payload[1] == VERSION_SHA256:
        wide = sha256(prev_chain)
        wide.update(payload)
        return wide.digest()[:8]
    if payload[_SHORT_BYTES:_SHORT_END]:
        hashed = blake2b(prev_chain, digest_size=8)
        hashed.update(payload)
        return hashed.digest()
    # A call less, for the price of a copy.
    return blake2b(prev_chain + payload, digest_size=8).digest()
