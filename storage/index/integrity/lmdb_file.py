"""Reading a row of an LMDB file without LMDB: of a file that may be damaged in any way.

LMDB maps its file and believes it: a bad page ends the process (SIGSEGV, SIGBUS, an assertion). To
learn what a file that nothing vouches for says of itself, its pages are read here, and everything
in them is checked before it is followed. Nothing is proved by that: what is found counts only if it
has a checksum of its own.

The format is that of LMDB 0.9 (data version 1) on 64-bit little-endian machines; on others nothing
is found:

    page        u64 number, u16 pad, u16 flags, u16 lower, u16 upper; offsets of nodes up to `lower`
    meta        pages 0 and 1, the one with the higher transaction counts; behind the page's head
                u32 magic, u32 version, u64 address, u64 map size, two databases (free, main),
                u64 last page, u64 transaction
    database    u32 page size (in `free` of a meta page), u16 flags, u16 depth, u64 of branches, of
                leaves, of overflow pages and of entries, u64 number of the root page
    node        u16 low, u16 high, u16 flags, u16 length of the key; key; value. In a leaf, low and
                high are the length of the value; in a branch, they and flags the number of a page
"""

import os
import sys
from pathlib import Path
from struct import Struct
from typing import NamedTuple

from kvd.storage import disk

_HEAD = Struct("<QHHHH")
_META = Struct("<II16xI44x8x32xQQQ")
_DATABASE = Struct("<8x32xQ")
_NODE = Struct("<HHHH")
_U16 = Struct("<H")
assert (_HEAD.size, _META.size, _DATABASE.size) == (16, 136, 48)

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF = 0x01, 0x02
_PAGE_BYTES = (4096, 8192, 16384, 32768)
_DEPTH_MAX = 32


class _Node(NamedTuple):
    key: bytes
    value: bytes
    child: int


def look_up(path: Path, table: bytes | None, key: bytes) -> bytes | None:
    """Return the value of a key in a table of a file, or in its main database.

    Returns:
        None where the file does not exist, or nothing is found in it.

    Raises:
        OSError: the file cannot be read, which says nothing about what it holds.
    """
    if sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return None
    try:
        fd = disk.open_to_read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        size, root = _newest_state(fd)
        if table is not None:
            database = _find(fd, size, root, table)
            if database is None or len(database) != _DATABASE.size:
                return None
            (root,) = _DATABASE.unpack(database)
        return _find(fd, size, root, key)
    finally:
        os.close(fd)


def _newest_state(fd: int) -> tuple[int, int]:
    """Return the size of a page and the root of the main database; twice 0 if there is no state."""
    found = [(0, 0, 0)]
    for size in _PAGE_BYTES:
        for number in (0, 1):
            page = disk.read_at(fd, _HEAD.size + _META.size, number * size)
            if len(page) < _HEAD.size + _META.size:
                continue
            magic, version, says, root, _, transaction = _META.unpack_from(page, _HEAD.size)
            if (magic, version, says) == (_MAGIC, _VERSION, size):
                found.append((transaction, size, root))
    return max(found)[1:]


def _find(fd: int, size: int, root: int, key: bytes) -> bytes | None:
    number = root
    for _ in range(_DEPTH_MAX):
        page = disk.read_at(fd, size, number * size) if 0 < number < 1 << 48 else b""
        if not size or len(page) < size or _HEAD.unpack_from(page)[0] != number:
            return None
        flags = _HEAD.unpack_from(page)[2]
        nodes = _nodes(page, is_leaf=bool(flags & _LEAF))
        if flags & _LEAF:
            return next((node.value for node in nodes if node.key == key), None)
        # The first key of a branch is empty: what is less than the second one is there.
        below = [node.child for node in nodes if node.key <= key]
        if not flags & _BRANCH or not below:
            return None
        number = below[-1]
    return None


def _nodes(page: bytes, *, is_leaf: bool) -> list[_Node]:
    """Return the nodes of a page that lie inside of it."""
    found = []
    lower = _HEAD.unpack_from(page)[3]
    for slot in range(_HEAD.size, min(lower, len(page) - 1), 2):
        (at,) = _U16.unpack_from(page, slot)
        if at + _NODE.size > len(page):
            continue
        low, high, flags, key_bytes = _NODE.unpack_from(page, at)
        begin = at + _NODE.size + key_bytes
        length = low | high << 16 if is_leaf else 0
        if begin + length <= len(page):
            child = low | high << 16 | flags << 32
            found.append(
                _Node(page[begin - key_bytes : begin], page[begin : begin + length], child)
            )
    return found
