"""Messages of protobuf: only varints and byte strings are in the few that are read here.

message   fields, each a key (varint: number << 3 | wire type) and what the wire type says:
          0 a varint, 2 a length (varint) and so many bytes; 1 and 5, eight and four bytes,
          occur in no message of etcd's
"""

from __future__ import annotations

from collections.abc import Mapping

VARINT, BYTES = 0, 2
_VARINT_BYTES_MAX = 10
_U64 = (1 << 64) - 1

Value = int | bytes
Shape = Mapping[int, int]
"""The wire type of each known field by its number."""


class Malformed(ValueError):
    """The bytes are no message of that shape."""


def decode(data: bytes, shape: Shape, *, is_closed: bool = False) -> dict[int, Value]:
    """Return the known fields of a message by their numbers; of one that comes twice the last.

    Args:
        data: the message.
        shape: its known fields.
        is_closed: whether there are no others, in any version.

    Raises:
        Malformed: it is none.
    """
    fields: dict[int, Value] = {}
    at, size = 0, len(data)
    while at < size:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        known = shape.get(number)
        if known is None and (is_closed or not number):
            raise Malformed(f"unknown field {number}")
        if known is not None and known != wire:
            raise Malformed(f"field {number} of wire type {wire}, expected {known}")
        if wire == VARINT:
            value, at = _varint(data, at)
            if known is not None:
                fields[number] = value
        elif wire == BYTES:
            length, at = _varint(data, at)
            if length > size - at:
                raise Malformed(f"field {number} of {length} bytes, {size - at} are left")
            if known is not None:
                fields[number] = data[at : at + length]
            at += length
        else:
            raise Malformed(f"wire type {wire}")
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at an offset, and the offset behind it."""
    try:
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        number, shift = byte & 0x7F, 7
        while True:
            at += 1
            byte = data[at]
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number & _U64, at + 1
            shift += 7
            if shift >= 7 * _VARINT_BYTES_MAX:
                raise Malformed("a number of more than ten bytes")
    except IndexError:
        raise Malformed("it ends in the middle of a number") from None


def number(fields: Mapping[int, Value], field: int) -> int:
    """Return a number of a message, 0 where it is absent."""
    value = fields.get(field, 0)
    assert isinstance(value, int)
    return value


def signed(fields: Mapping[int, Value], field: int) -> int:
    """Return a number of type int64."""
    value = number(fields, field)
    return value - (1 << 64) if value >> 63 else value


def data(fields: Mapping[int, Value], field: int) -> bytes:
    """Return a byte string of a message, empty where it is absent."""
    value = fields.get(field, b"")
    assert isinstance(value, bytes)
    return value
