"""Whose a data directory is, and the file FORMAT that says so.

FORMAT is one line of JSON, and its crc32 as eight hexadecimal digits in a second one:

    format, min_reader     the version of the directory, and the oldest program that reads it
    store_uuid             16 bytes, as all that follow in hexadecimal digits
    cluster_id, member_id  64 bits each, not 0
    created                when, in UTC
    log                    "begun" once the log has had a segment
"""

import json
from typing import NamedTuple
from zlib import crc32

FORMAT_VERSION = 1
STORE_UUID_BYTES = 16


class Identity(NamedTuple):
    """The identity of a store for all its life: 16 random bytes, and two 64-bit ids, never 0."""

    store_uuid: bytes
    cluster_id: int
    member_id: int


class NewIds(NamedTuple):
    """The ids of a store that is to be created: two of 64 bits, not 0."""

    cluster_id: int
    member_id: int


class Format(NamedTuple):
    """The content of FORMAT: the store's identity, and whether its log has ever had a segment."""

    identity: Identity
    log_begun: bool


def encode_format(fields: dict[str, object]) -> bytes:
    """Return the bytes of a FORMAT."""
    line = json.dumps(fields)
    return f"{line}\n{crc32(line.encode()):08x}\n".encode()


def decode_format(data: bytes) -> dict[str, object]:
    """Return the fields of a FORMAT.

    Raises:
        ValueError: it is damaged; the message goes on behind the name of the file.
    """
    line, _, crc = data.rstrip(b"\n").partition(b"\n")
    expected = f"{crc32(line):08x}"
    if crc != expected.encode():
        raise ValueError(f"fails its checksum ({crc!r}, expected {expected!r})")
    try:
        return dict(json.loads(line).items())
    except (AttributeError, ValueError):
        raise ValueError("is not in the form of a FORMAT") from None
