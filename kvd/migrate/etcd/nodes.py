"""Nodes and events of etcd's v2 store, in memory and in the JSON of its snapshots."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Mapping
from typing import Any

from kvd.migrate import times
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS, Change, Kind

_KINDS = {
    "set": Kind.SET,
    "create": Kind.CREATE,
    "update": Kind.UPDATE,
    "compareAndSwap": Kind.COMPARE_AND_SWAP,
    "delete": Kind.DELETE,
    "compareAndDelete": Kind.COMPARE_AND_DELETE,
    "expire": Kind.EXPIRE,
}


class StoredNode:
    """A node of the tree; `children` is None of a file."""

    __slots__ = ("children", "created", "expiration_ns", "modified", "path", "value")

    def __init__(
        self, path: bytes, value: bytes | None, created: int, modified: int, expiration_ns: int
    ) -> None:
        self.path = path
        self.value = value
        self.created = created
        self.modified = modified
        self.expiration_ns = expiration_ns
        self.children: dict[bytes, StoredNode] | None = {} if value is None else None

    def as_node(self) -> Node:
        """Return it as kvd's index has it."""
        is_dir = self.children is not None
        # A time before 1970 is possible here, and has ended.
        expiration_ns = max(self.expiration_ns, 1) if self.expiration_ns else 0
        return Node(self.value, self.created, self.modified, expiration_ns, int(is_dir))


def event(document: dict[str, Any], time_ns: int) -> Event:
    """Return an event of a snapshot's history."""
    node, before = document["node"], document.get("prevNode")
    kind = _KINDS[document["action"]]
    after = node_of(node)
    change = Change(
        kind,
        index_of(node["modifiedIndex"]),
        node["key"].encode(),
        after.value,
        bool(node.get("dir")),
        after.created_index,
        after.expiration_ns,
        document.get("refresh") is True,
    )
    if change.kind in REMOVALS:
        change = change._replace(value=None, expiration_ns=0)
    return Event(change, None if before is None else node_of(before), time_ns)


def node_of(document: Mapping[str, Any]) -> Node:
    """Return a node as clients are shown it; kvd may show its value as base64."""
    is_dir = bool(document.get("dir"))
    text, ends = document.get("value") or "", document.get("expiration")
    is_encoded = document.get("encoding") == "base64"
    return Node(
        None if is_dir else base64.b64decode(text) if is_encoded else text.encode(),
        index_of(document.get("createdIndex", 0)),
        index_of(document.get("modifiedIndex", 0)),
        0 if ends is None else max(times.parse(ends), 1),
        int(is_dir),
    )


def index_of(number: Any) -> int:
    """Return an index of JSON.

    Raises:
        TypeError, ValueError, OverflowError: it is none of 64 bits.
    """
    index = int(number)
    if not 0 <= index < 1 << 64:
        raise ValueError(f"{index} is no index")
    return index


def time_of(document: dict[str, Any]) -> int:
    """Return the time of an event, by the TTL that it shows; 0 where it shows none."""
    for node in (document["node"], document.get("prevNode") or {}):
        if node.get("ttl", 0) > 0 and "expiration" in node:
            return max(times.parse(node["expiration"]) - int(node["ttl"]) * times.NS, 0)
    return 0


def clean(path: bytes) -> bytes:
    """Return a path as Go's `path.Clean` makes it of one below the root."""
    if path.startswith(b"/") and b"//" not in path and b"/." not in path and path[-1:] != b"/":
        return path
    return posixpath.normpath(b"/" + path.lstrip(b"/"))
