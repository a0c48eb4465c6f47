"""The content of the log: records of decided changes.

A record is a CBOR array whose first item is its kind. Records hold *decisions*, never requests:
replaying one needs no comparison, no clock and no setting of the process that replays it.

    change   [kind 1..7, index, key, value | nil, dir, created_index, expiration_ns | nil,
              refresh, rid]
    term     [16, term]                  one per start of the server
    document [kind 17 or 18, what, name, content | nil, secret | nil, rid]
    setting  [19, name, value]           what changes the result of `apply` is logged
    clock    [20, offset_ns]             the machine's clock was stepped; none where it never was

A document is metadata outside the key space: of kind 17 (auth) users, roles and whether they are
asked for, of kind 18 (member) what members say of themselves. `what` and `name` are text and say
whose document it is; nil removes it.

`rid` names the request that a record comes of, where another member has forwarded that: 16 bytes,
the same for all records of a transaction; nil for the writer's own. It is no part of what happened:
the event history and the index are the same with it and without.
Keys, values, documents and secrets are byte strings. A reader refuses kinds it does not know.

Integers and lengths of a change are written in CBOR's widest form (8 and 4 bytes), whatever their
value: so it is packed and formatted in a fifth of the time that an encoder takes which looks for
the shortest form (0.43 against 2.2 us, measured). A reader takes either form.

Times and expirations are the store's; `payload.py` says which those are, and has the batches that
records are in.
"""

from __future__ import annotations

from itertools import product
from struct import Struct
from typing import Any, NamedTuple

import cbor2

_new = tuple.__new__

# A change as CBOR (RFC 8949 section 3): an array of nine (0x89) with its fields in their order;
# 0x1b begins an integer of 64 bits, 0x5a bytes, 0xf4 is false, 0xf5 true, 0xf6 nil.
_CHANGE = b"\x89%c\x1b%b%b%b%b\x1b%b%b%b\xf6"
# The most frequent one, of a file that does not expire.
_FILE = b"\x89%c\x1b%b%b\x5a%b%b\xf4\x1b%b\xf6\xf4\xf6"
_NIL = b"\xf6"
_BOOLS = (b"\xf4", b"\xf5")
_BYTES = 0x5A
_pack_u64, _pack_u32 = Struct(">Q").pack, Struct(">I").pack
_pack_index_and_key_length = Struct(">QBI").pack


class Kind:
    """The kinds of record; the numbers are part of the log's format.

    No enumeration: looking up a member costs a tenth of a microsecond, several times a write.
    """

    SET = 1
    CREATE = 2
    UPDATE = 3
    COMPARE_AND_SWAP = 4
    DELETE = 5
    COMPARE_AND_DELETE = 6
    EXPIRE = 7
    TERM = 16
    AUTH = 17
    MEMBER = 18
    SETTING = 19
    CLOCK = 20


_NONE = type(None)
_CHANGE_TYPES = frozenset(
    product(
        (int,),
        (int,),
        (bytes,),
        (bytes, _NONE),
        (bool,),
        (int,),
        (int, _NONE),
        (bool,),
        (bytes, _NONE),
    )
)
"""The types of what a change is written as, where it is written as this version does."""
DOCUMENTS = frozenset((Kind.AUTH, Kind.MEMBER))
CHANGES = frozenset(range(Kind.SET, Kind.EXPIRE + 1))
RID_BYTES = 16
_RID_HEAD = 0x40 + RID_BYTES
# Where the rid stands in the array of a record.
_RID_PLACES = dict.fromkeys(CHANGES, 8) | dict.fromkeys(DOCUMENTS, 5)
REMOVALS = frozenset((Kind.DELETE, Kind.COMPARE_AND_DELETE, Kind.EXPIRE))


class UnknownRecord(ValueError):
    """The log holds something that this version cannot read."""


class Change(NamedTuple):
    """One decided change of one node; a named tuple, because the hot path makes one per write.

    `value` is None for directories and removals. `expiration_ns` is a time of the store's, 0 for
    none. `created_index` is the node's as it is after the change (of a removed node:
    as it was). A `refresh` changes a node but is delivered to no watcher.
    """

    kind: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is not needed
    key: bytes
    value: bytes | None
    dir: bool
    created_index: int
    expiration_ns: int = 0
    refresh: bool = False


class Term(NamedTuple):
    """The store was opened for the `term`-th time."""

    term: int


class Document(NamedTuple):
    """The new content of a document (user, role, member); None if it was removed.

    `what` is a word of the server's (`user`), `name` a client's. `secret` is the part of it that
    no client may see (the hash of a password), so that tools need not know what is in a
    document.
    """

    kind: int
    what: str
    name: str
    content: bytes | None
    secret: bytes | None = None


class LoggedSetting(NamedTuple):
    """A logged setting: `history_limit` is how many events are kept."""

    name: str
    value: int


class ClockOffset(NamedTuple):
    """From here on the machine's clock is the store's time plus this."""

    offset_ns: int


Record = Change | Term | Document | LoggedSetting | ClockOffset


def encode_record(record: Record) -> bytes:
    """Return the CBOR bytes of one record."""
    if isinstance(record, Change):
        return encode_change(record)
    if isinstance(record, Term):
        return cbor2.dumps([Kind.TERM, record.term])
    if isinstance(record, Document):
        return cbor2.dumps([*record, None])
    if isinstance(record, ClockOffset):
        return cbor2.dumps([Kind.CLOCK, record.offset_ns])
    return cbor2.dumps([Kind.SETTING, record.name, record.value])


def encode_change(change: Change) -> bytes:
    """As `encode_record`, of a change."""
    kind, index, key, value, is_dir, created, expiration_ns, refresh = change
    if not (value is None or expiration_ns or is_dir or refresh):
        return _FILE % (
            kind,
            _pack_index_and_key_length(index, _BYTES, len(key)),
            key,
            _pack_u32(len(value)),
            value,
            _pack_u64(created),
        )
    return _CHANGE % (
        kind,
        _pack_index_and_key_length(index, _BYTES, len(key)),
        key,
        _NIL if value is None else b"\x5a%b%b" % (_pack_u32(len(value)), value),
        _BOOLS[is_dir],
        _pack_u64(created),
        b"\x1b%b" % _pack_u64(expiration_ns) if expiration_ns else _NIL,
        _BOOLS[refresh],
    )


def with_rid(encoded: bytes, rid: bytes) -> bytes:
    """Return an encoded change or document, whose `rid` is nil, with one."""
    assert len(rid) == RID_BYTES
    assert encoded[-1:] == _NIL
    return b"%b%c%b" % (encoded[:-1], _RID_HEAD, rid)


def rid_of(item: list[Any]) -> bytes | None:
    """Return the rid in the array of a record, None where it has none."""
    place = _RID_PLACES.get(item[0])
    return None if place is None else item[place]


def decode_record(item: Any) -> Record:
    """Return the record in a decoded CBOR array.

    Args:
        item: what was decoded, and is needed no more: it may be changed.

    Raises:
        UnknownRecord: its kind or its shape is not one this version writes.
    """
    # A table of the types instead of patterns, and not the named tuple's own constructor: a quarter
    # of the time, and a replay does it for each record of the log (measured).
    if (
        isinstance(item, list)
        and tuple(map(type, item[:9])) in _CHANGE_TYPES
        and item[0] in CHANGES
    ):
        if item[6] is None:
            item[6] = 0
        return _new(Change, item[:8])
    match item:
        case [Kind.TERM, int(term), *_]:
            return Term(term)
        case [
            int(kind), str(what), str(name), bytes() | None as content, bytes() | None as secret,
            bytes() | None, *_,
        ] if kind in DOCUMENTS:  # fmt: skip
            return Document(kind, what, name, content, secret)
        case [Kind.SETTING, str(name), int(number), *_]:
            return LoggedSetting(name, number)
        case [Kind.CLOCK, int(offset_ns), *_]:
            return ClockOffset(offset_ns)
        case _:
            raise UnknownRecord(f"a record of an unknown kind: {item!r:.60}")
