"""The row of one node in the index, and its key.

    key    u64 id of the parent directory, big-endian | 00 | name                     (name <= 480)
           u64 id of the parent directory, big-endian | 01 | name[:440] | blake2b-256 of the name
    value  u32 crc | u8 flags | u64 created | u64 modified | u64 expiration ns | u64 directory id
           | u32 length of the name, name        (flag LONG only: the key holds just its beginning)
           | value                               (files only)

The fields of the value are little-endian. The crc is zlib's, over the key and everything behind it,
so a record that is damaged, or stands under another key, is refused instead of served. LMDB keys
end at 511 bytes, etcd's do not, hence the second form. A range scan over the parent's id lists a
directory; ids are never given twice.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple
from zlib import crc32

HEADER = Struct("<IBQQQQ")
assert HEADER.size == 37
_unpack = HEADER.unpack_from
_pack_header = HEADER.pack
_new = tuple.__new__
_BODY = Struct("<BQQQQ")
_ID = Struct(">Q")
_U32 = Struct("<I")
_pack_body = _BODY.pack
_pack_u32 = _U32.pack

NAME_BYTES_MAX = 480
NAME_BYTES_KEPT = 440
ROOT_ID = 1

_DIR = 1
_LONG = 2


class CorruptIndex(Exception):
    """A record of the index fails its checksum; the index must be rebuilt from the log."""


class Node(NamedTuple):
    """A file (`dir_id` 0, `value` set) or a directory (`value` None).

    Indexes are etcd's; `expiration_ns` is nanoseconds since the epoch (UTC), 0 for none.
    """

    value: bytes | None
    created_index: int
    modified_index: int
    expiration_ns: int = 0
    dir_id: int = 0


class Obstacle(NamedTuple):
    """Why a path leads to no node: `blocked` by the file at `path`, or `path` is missing."""

    blocked: bool
    path: bytes


ROOT = Node(None, 0, 0, 0, ROOT_ID)


def id_prefix(dir_id: int) -> bytes:
    """Return what the keys of all children of a directory begin with."""
    return _ID.pack(dir_id)


def encode_key(parent_id: int, name: bytes) -> bytes:
    """Return the key of the row of the child `name` of a directory."""
    if len(name) <= NAME_BYTES_MAX:
        return _ID.pack(parent_id) + b"\0" + name
    digest = blake2b(name, digest_size=32).digest()
    return _ID.pack(parent_id) + b"\1" + name[:NAME_BYTES_KEPT] + digest


def parent_prefix(dir_id: int) -> bytes:
    """Return what the keys of a directory's children with short names consist of before these."""
    return id_prefix(dir_id) + b"\0"


ROOT_PREFIX = parent_prefix(ROOT_ID)


def child_key(prefix: bytes, name: bytes) -> bytes:
    """Return the key of the child `name` of a directory, from its `parent_prefix`."""
    if len(name) <= NAME_BYTES_MAX:
        return prefix + name
    return encode_key(_ID.unpack_from(prefix)[0], name)


def encode_node(key: bytes, name: bytes, node: Node) -> bytes:
    """Return the row of a node called `name`, with `key` as its key."""
    return seal_node(key, name, node)[1]


def seal_node(key: bytes, name: bytes, node: Node) -> tuple[int, bytes]:
    """As `encode_node`, with the checksum that the value carries."""
    value, created, modified, expiration_ns, dir_id = node
    flags = _DIR if dir_id else 0
    rest = value or b""
    if len(name) > NAME_BYTES_MAX:
        flags |= _LONG
        rest = _U32.pack(len(name)) + name + rest
    body = _pack_body(flags, created, modified, expiration_ns, dir_id) + rest
    crc = crc32(body, crc32(key))
    return crc, _pack_u32(crc) + body


def previous_row(node: Node) -> bytes:
    """Return a node as a row of the history holds it: without a checksum, and without its name."""
    value, created, modified, expiration_ns, dir_id = node
    head = _pack_header(0, _DIR if dir_id else 0, created, modified, expiration_ns, dir_id)
    return head + value if value else head


def decode_node(key: bytes, data: bytes) -> Node:
    """Return the node in a value.

    Raises:
        CorruptIndex: the value is not what was written under this key.
    """
    try:
        crc, flags, created, modified, expiration_ns, dir_id = _unpack(data)
    except struct.error:
        raise CorruptIndex(
            f"a node record of {len(data)} bytes, expected {HEADER.size} or more"
        ) from None
    if crc32(data[4:], crc32(key)) != crc:
        raise CorruptIndex(f"the node record under {key.hex()} fails its checksum")
    if flags:
        return parse_node(data)
    # A third of the time that the named tuple's own constructor takes, and the most frequent call.
    return _new(Node, (data[37:], created, modified, expiration_ns, dir_id))


def parse_node(data: bytes, start: int = 0) -> Node:
    """Return the node in a value that is known to be whole, and begins at `start`."""
    _, flags, created, modified, expiration_ns, dir_id = HEADER.unpack_from(data, start)
    if flags & _DIR:
        return Node(None, created, modified, expiration_ns, dir_id)
    start += HEADER.size
    if flags & _LONG:
        start += 4 + _U32.unpack_from(data, start)[0]
    return Node(data[start:], created, modified, expiration_ns)


def decode_name(key: bytes, data: bytes) -> bytes:
    """Return the name of the node under `key`, from its value where the key holds only a part."""
    if key[8] == 0:
        return key[9:]
    length: int = _U32.unpack_from(data, HEADER.size)[0]
    start = HEADER.size + 4
    return data[start : start + length]


def has_ended(node: Node, now_ns: int) -> bool:
    """Return whether a node's time to live has ended."""
    return 0 < node.expiration_ns <= now_ns
