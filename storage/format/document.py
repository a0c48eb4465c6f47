"""The row of a document (user, role, member) in the index.

    key    what, in UTF-8 | 00 | blake2b-256 of the name
    row    u32 crc, little-endian | CBOR [kind, name, content, secret | nil]

`what` is a word of the server's, a name a client's and of any length: LMDB's keys end at 511 bytes.
The crc is zlib's, over key and row.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from zlib import crc32

import cbor2

from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.records import Document

_CRC = Struct("<I")
_NAME_BYTES = 32


def document_prefix(what: str) -> bytes:
    """Return what the keys of all documents of one sort begin with."""
    return what.encode() + b"\0"


def document_key(what: str, name: str) -> bytes:
    """Return the key of a document's row; a name that is no text has one, but no document."""
    raw = name.encode("utf-8", "surrogateescape")
    return document_prefix(what) + blake2b(raw, digest_size=_NAME_BYTES).digest()


def encode_document(key: bytes, document: Document) -> bytes:
    """Return the row of a document, with `key` as its key."""
    body = cbor2.dumps([document.kind, document.name, document.content, document.secret])
    return _CRC.pack(crc32(body, crc32(key))) + body


def decode_document(key: bytes, row: bytes) -> Document:
    """Return the document of a row.

    Raises:
        CorruptIndex: the row is not what was written under this key.
    """
    body = row[_CRC.size :]
    if len(row) < _CRC.size or crc32(body, crc32(key)) != _CRC.unpack_from(row)[0]:
        raise CorruptIndex(f"the document under {key.hex()} fails its checksum")
    kind, name, content, secret = cbor2.loads(body)
    return Document(kind, key[: -_NAME_BYTES - 1].decode(), name, content, secret)
