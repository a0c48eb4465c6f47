"""The snapshots of an etcd: the v2 store as JSON, in two messages of protobuf.

file      <term>-<index>.snap, both in 16 hexadecimal digits
content   {1: CRC-32C of the data, 2: data}; data: {1: the store, 2: {2: index, 3: term}}
store     {"Root": node, "CurrentIndex": n, "WatcherHub": {"EventHistory": {"Queue": ring}}}
node      {"Path", "CreatedIndex", "ModifiedIndex", "ExpireTime", "Value", "Children"}: without
          Children a file; an ExpireTime in the year 1 is none
ring      {"Events": [event or null ...], "Size", "Front", "Capacity"}
event     as clients see it, with "refresh"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kvd.migrate.deep_json import loads
from kvd.migrate.errors import Damaged
from kvd.migrate.etcd.crc32c import extend
from kvd.migrate.etcd.protobuf import BYTES, VARINT, Malformed, data, decode, number

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.snap")


class Snapshot(NamedTuple):
    """A snapshot that is intact: the store, and the entry of the log after which it was so."""

    path: Path
    number: int
    term: int
    store: dict[str, Any]


def newest(directory: Path) -> tuple[Snapshot | None, list[Damaged]]:
    """Return the newest intact snapshot, or None, and what is wrong with those newer than it."""
    faults: list[Damaged] = []
    for path in sorted(directory.glob("*.snap"), reverse=True):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue  # the name of a broken or foreign file
        try:
            found = read(path)
        except Damaged as error:
            faults.append(error)
            continue
        if (found.term, found.number) != (int(match[1], 16), int(match[2], 16)):
            faults.append(Damaged.at(path, 0, f"is of term {found.term}, entry {found.number}"))
            continue
        return found, faults
    return None, faults


def read(path: Path) -> Snapshot:
    """Read a snapshot.

    Raises:
        Damaged: it is none, or damaged.
    """
    try:
        index, term, store = _parse(path.read_bytes())
    except ValueError as error:
        raise Damaged.at(path, 0, str(error)) from None
    return Snapshot(path, index, term, store)


def _parse(content: bytes) -> tuple[int, int, dict[str, Any]]:
    """Return index, term and store; ValueError says why there are none."""
    outer = decode(content, {1: VARINT, 2: BYTES}, is_closed=True)
    inside, crc = data(outer, 2), number(outer, 1)
    found = extend(0, inside)
    if crc != found:
        raise Malformed(f"its checksum is {crc:08x}, expected {found:08x}")
    inner = decode(inside, {1: BYTES, 2: BYTES})
    meta = decode(data(inner, 2), {1: BYTES, 2: VARINT, 3: VARINT})
    store = loads(data(inner, 1))
    if not isinstance(store, dict) or not isinstance(store.get("Root"), dict):
        raise Malformed("it holds no v2 store")
    return number(meta, 2), number(meta, 3), store


def nodes(store: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the nodes below the root, each before its children."""
    waiting = [store["Root"]]
    while waiting:
        node = waiting.pop()
        if node is not store["Root"]:
            yield node
        waiting += (node.get("Children") or {}).values()


def events(store: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the history of events, oldest first."""
    queue = store.get("WatcherHub", {}).get("EventHistory", {}).get("Queue", {})
    ring, size = queue.get("Events") or [], queue.get("Size", 0)
    front = queue.get("Front", 0)
    size = min(size, len(ring))
    found = [ring[(front + place) % len(ring)] for place in range(size)] if ring else []
    return [event for event in found if event is not None]
