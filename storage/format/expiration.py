"""Rows of the table `ttl`: which nodes end when, in the order of their ends.

key    u64 expiration ns, big-endian | key of the node
value  u32 crc, little-endian, over the key and the path | path of the node
"""

from struct import Struct
from zlib import crc32

from kvd.storage.format.node import CorruptIndex

_CRC = Struct("<I")
_U64 = Struct(">Q")


def expiration_key(expiration_ns: int, key: bytes) -> bytes:
    """Return the key of the row of `ttl` for the node under a key."""
    return _U64.pack(expiration_ns) + key


def expiration_row(row_key: bytes, path: bytes) -> tuple[int, bytes]:
    """Return the row with such a key, and the checksum that it carries."""
    crc = crc32(row_key + path)
    return crc, _CRC.pack(crc) + path


def expiration_of(row_key: bytes) -> int:
    """Return the time of a row of `ttl`, in nanoseconds since the epoch."""
    expiration_ns: int = _U64.unpack_from(row_key)[0]
    return expiration_ns


def decode_path(row_key: bytes, row: bytes) -> bytes:
    """Return the path in a row of `ttl`.

    Raises:
        CorruptIndex: it is not what was written there.
    """
    path = row[4:]
    if len(row) < _CRC.size or crc32(path, crc32(row_key)) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex(f"the expiration record {row_key.hex()} fails its checksum")
    return path
