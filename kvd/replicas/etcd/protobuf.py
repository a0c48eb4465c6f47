"""Protocol buffers, as much of the wire format as etcd's messages need. Pure.

A message is a frozen dataclass; each field has its number in its metadata (`at`), and its kind
there or by its default: int, bool, bytes, str, another message, or a tuple of one of these
(repeated, default ()). As in proto3 a field that has its default is not encoded.

    field    varint: number << 3 | wire type, then
    type 0   varint: 7 bits a byte, lowest first, the top bit says "more"; int64 in two's complement
    type 2   varint length, then bytes, UTF-8 or a message
    1, 5     8 and 4 bytes; only skipped here, as is every field with an unknown number
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_MASK = 2**64 - 1


class Malformed(ValueError):
    """Bytes that are no message of this type."""


class Unsigned:
    """The kind of an integer that is a uint64; int is an int64."""


class _Field(NamedTuple):
    name: str
    kind: type
    is_repeated: bool
    default: object
    key: bytes
    """The encoded number and wire type."""


def at(number: int, kind: type | None = None) -> Mapping[str, object]:
    """The metadata of a field; without a kind it is the type of the default."""
    return {"number": number, "kind": kind}


_KNOWN: dict[type, dict[int, _Field]] = {}


def _fields(message: type) -> dict[int, _Field]:
    """The fields of a message by number and wire type."""
    found = _KNOWN.get(message)
    if found is None:
        found = _KNOWN[message] = _read_fields(message)
    return found


def _read_fields(message: Any) -> dict[int, _Field]:
    found = {}
    for field in sorted(dataclasses.fields(message), key=lambda field: field.metadata["number"]):
        kind = field.metadata["kind"] or type(field.default)
        wire = field.metadata["number"] << 3 | (VARINT if kind in (int, bool, Unsigned) else LENGTH)
        is_repeated = field.default == ()
        found[wire] = _Field(field.name, kind, is_repeated, field.default, _varint(wire))
    return found


def _varint(number: int) -> bytes:
    number &= _MASK
    if number < 0x80:
        return bytes((number,))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode(message: Any) -> bytes:
    """Return the bytes of a message."""
    parts: list[bytes] = []
    for name, kind, is_repeated, default, key in _fields(type(message)).values():
        value = getattr(message, name)
        if value is default or value == default:
            continue
        for item in value if is_repeated else (value,):
            if kind in (int, bool, Unsigned):
                parts += (key, _varint(item))
                continue
            content = item
            if kind is not bytes:
                content = item.encode() if kind is str else encode(item)
            parts += (key, _varint(len(content)), content)
    return b"".join(parts)


def decode(message: type[T], data: bytes) -> T:
    """Return the message of these bytes.

    Raises:
        Malformed: they are none of this type.
    """
    fields = _fields(message)
    values: dict[str, Any] = {}
    position, end = 0, len(data)
    while position < end:
        wire, position = _read_varint(data, position)
        field = fields.get(wire)
        start, position = _span(data, position, wire & 7)
        if field is None:
            continue
        value = _value(field.kind, data, start, position)
        if field.is_repeated:
            values.setdefault(field.name, []).append(value)
        else:
            values[field.name] = value
    return message(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _value(kind: type, data: bytes, start: int, end: int) -> object:
    if kind in (int, bool, Unsigned):
        number = _read_varint(data, start)[0]
        if kind is int:
            return number - 2**64 if number >> 63 else number
        return bool(number) if kind is bool else number
    content = data[start:end]
    if kind is bytes:
        return content
    if kind is str:
        return content.decode(errors="replace")
    return decode(kind, content)


def _span(data: bytes, position: int, wire_type: int) -> tuple[int, int]:
    """The start and the end of a field's content."""
    start = position
    if wire_type == VARINT:
        end = _read_varint(data, position)[1]
    elif wire_type == LENGTH:
        length, start = _read_varint(data, position)
        end = start + length
    elif wire_type in (FIXED32, FIXED64):
        end = start + (8 if wire_type == FIXED64 else 4)
    else:
        raise Malformed(f"wire type {wire_type} at byte {position}")
    if end > len(data):
        raise Malformed(f"a field ends at byte {end} of {len(data)}")
    return start, end


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number and where it ends."""
    number = 0
    try:
        for shift in range(0, 70, 7):
            byte = data[position]
            position += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number & _MASK, position
    except IndexError:
        raise Malformed(f"a number is cut at byte {len(data)}") from None
    raise Malformed(f"a number of more than 10 bytes before byte {position}")
