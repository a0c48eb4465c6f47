"""The log as JSON: one object per record, in order, as people and their tools read it.

Each has `file`, `offset` and `frame` (its place in the log), `batch`, `position` (of the record
among all), `term`, `time` and `time_ns` of its batch, and `kind`; then the fields of the kind, as
in storage/format/records.py. Bytes that are UTF-8 are written as text, others in base64 under the
name with the suffix `_base64`. Times and expirations are those of the wall clock, in nanoseconds
since 1970; an expiration of 0 means none. Secrets (hashes of passwords) are left out: `secret` only
says that there is one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime

from kvd.storage.format import frame
from kvd.storage.format.payload import Payload
from kvd.storage.format.records import Change, ClockOffset, Document, Kind, Record, Term
from kvd.storage.replay import batch_in
from kvd.storage.tools.source import Source
from kvd.storage.wal.segments import Frame

Json = dict[str, str | int | bool | None]

_KINDS = {
    Kind.SET: "set",
    Kind.CREATE: "create",
    Kind.UPDATE: "update",
    Kind.COMPARE_AND_SWAP: "compareAndSwap",
    Kind.DELETE: "delete",
    Kind.COMPARE_AND_DELETE: "compareAndDelete",
    Kind.EXPIRE: "expire",
    Kind.AUTH: "auth",
    Kind.MEMBER: "member",
}


def records(source: Source) -> Iterator[Json]:
    """Yield every record of the log.

    Raises:
        CorruptLog, LogTooNew: a frame cannot be read; the records before it came first.
    """
    name = number = None
    for found in source.frames():
        if number != found.end.segment:
            number = found.end.segment
            name = _segment_name(source, number)
        yield from _lines(f"wal/{name}", found, batch_in(found))


def rfc3339(time_ns: int) -> str:
    """Return a time in nanoseconds since 1970 as RFC 3339 writes it, in UTC."""
    seconds, rest = divmod(time_ns, 10**9)
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z"
    except (ValueError, OverflowError, OSError):
        return f"{time_ns} ns"


def _segment_name(source: Source, number: int) -> str:
    """Return the name of a segment; if a server has purged it, a pattern of the name."""
    start = f"{number:016x}-"
    return next((path.name for path in source.wal.glob(f"{start}*.wal")), f"{start}*.wal")


def _lines(file: str, found: Frame, payload: Payload) -> Iterator[Json]:
    place: Json = {
        "file": file,
        "offset": found.end.offset - frame.frame_size(len(found.payload)),
        "frame": found.seq,
        "batch": payload.seq,
        "term": payload.term,
        "time": rfc3339(payload.wall_ns),
        "time_ns": payload.wall_ns,
    }
    first = payload.pos - len(payload.records) + 1
    for position, record in enumerate(payload.records, first):
        yield place | {"position": position} | _content(record, payload.clock_offset_ns)


def _content(record: Record, clock_offset_ns: int) -> Json:
    if isinstance(record, Change):
        kind, index, key, value, is_dir, created, expiration_ns, refresh = record
        return {
            "kind": _KINDS[kind],
            "index": index,
            **_text("key", key),
            **({} if value is None else _text("value", value)),
            "dir": is_dir,
            "created_index": created,
            "expiration_ns": expiration_ns and expiration_ns + clock_offset_ns,
            "refresh": refresh,
        }
    if isinstance(record, Term):
        return {"kind": "term", "new_term": record.term}
    if isinstance(record, Document):
        return {
            "kind": _KINDS[record.kind],
            "what": record.what,
            "name": record.name,
            **({} if record.content is None else _text("document", record.content)),
            "removed": record.content is None,
            **({} if record.secret is None else {"secret": "REDACTED"}),
        }
    if isinstance(record, ClockOffset):
        return {"kind": "clock", "offset_ns": record.offset_ns}
    return {"kind": "setting", "name": record.name, "number": record.value}


def _text(name: str, data: bytes) -> Json:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}
