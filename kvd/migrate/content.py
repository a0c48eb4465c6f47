"""The content of a store between source and target: nodes, history, users; and its digest.

The digest is sha256 over CBOR items:

    [path, value | nil, created, modified, expiration ns]    each node, by its path
    [index, kind, path, value | nil, is dir, created, expiration ns, refresh, time ns, node before]
        each event of the history, in order
    [what, name, content, secret | nil]                     each user, role and setting, by name

It is computed on both sides by this module: of the source from what was read of it, of the target
from what it has stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import cbor2

from kvd.storage.format.event import Event
from kvd.storage.format.identity import NewIds
from kvd.storage.format.node import Node
from kvd.storage.format.records import Change, Document, Kind

FILLER_KEY = b"/_etcd"
"""The key of events that fill the places of changes that were none of clients' keys."""


@dataclass
class Content:
    """All that a store holds.

    Attributes:
        nodes: By their paths; the `dir_id` of a directory is 1, the root is missing.
        index: The etcd index.
        events: The history, without gaps, up to `index`; or none.
        documents: Users, roles and settings.
        ids: Cluster and member id; None for new ones.
        raft_index, term: Of the log.
    """

    nodes: dict[bytes, Node]
    index: int
    events: list[Event] = field(default_factory=list)
    documents: list[Document] = field(default_factory=list)
    ids: NewIds | None = None
    raft_index: int = 0
    term: int = 0

    def digest(self) -> str:
        """Return the digest of it."""
        return digest(self.nodes.items(), self.events, self.documents)

    def digest_of_nodes(self) -> str:
        """Return the digest of its nodes alone, which an import over the API gives, too."""
        return digest(self.nodes.items(), (), ())

    def counts(self) -> Counts:
        """Return how many nodes of each sort there are."""
        files = sum(not node.dir_id for node in self.nodes.values())
        return Counts(
            files,
            len(self.nodes) - files,
            sum(bool(node.expiration_ns) for node in self.nodes.values()),
            sum(b"/_" in path for path in self.nodes),
        )


class Counts(NamedTuple):
    """Numbers of nodes: files, directories; with a TTL, hidden by a name on their path."""

    files: int
    directories: int
    expiring: int
    hidden: int

    def __str__(self) -> str:
        return (
            f"{self.files + self.directories:,} nodes ({self.files:,} keys, "
            f"{self.directories:,} directories, {self.expiring:,} with TTL, "
            f"{self.hidden:,} hidden)"
        )


def digest(
    nodes: Iterable[tuple[bytes, Node]], events: Iterable[Event], documents: Iterable[Document]
) -> str:
    """Return the digest of what a store holds, 64 hexadecimal digits."""
    hashed = hashlib.sha256()
    for path, node in sorted(nodes):
        hashed.update(cbor2.dumps([path, *node[:4]]))
    for change, prev, time_ns in events:
        kind, index, *rest = change
        before = None if prev is None else [*prev[:4], bool(prev.dir_id)]
        hashed.update(cbor2.dumps([index, kind, *rest, time_ns, before]))
    for document in sorted(documents, key=lambda document: (document.what, document.name)):
        kept = [document.what, document.name, document.content, document.secret]
        hashed.update(cbor2.dumps(kept))
    return hashed.hexdigest()


def without_gaps(events: Iterable[Event], index: int) -> list[Event]:
    """Return a history in which each index up to `index` has its event, as kvd's has.

    An index that was none of a client's key (of members, users, the cluster's version) becomes a
    refresh of a hidden key, which no watcher is shown.
    """
    found: list[Event] = []
    time_ns = 0
    for event in events:
        if event.change.index <= index:
            if found:
                first = found[-1].change.index + 1
                found += (filler(number, time_ns) for number in range(first, event.change.index))
            found.append(event)
            time_ns = event.time_ns
    if found:
        first = found[-1].change.index + 1
        found += (filler(number, time_ns) for number in range(first, index + 1))
    return found


def filler(index: int, time_ns: int) -> Event:
    """Return the event of an index that was none of a client's key."""
    change = Change(Kind.SET, index, FILLER_KEY, b"", False, index, refresh=True)
    return Event(change, None, time_ns)
