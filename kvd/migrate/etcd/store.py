"""The rules of etcd's v2 store: what each request of its log does to the nodes.

They are etcd's, not kvd's (kvd/v2/rules.py): kvd repairs quirks that a history of etcd's has, such
as the empty `prevValue` and the `prevIndex` 0, which mean that none was given. Each change has one
index and one event, those of the cluster's own nodes, too. A refused request changes nothing.

    /0   members and the version of the cluster     /1   the keys of clients     /2   users, roles
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from kvd.migrate import times
from kvd.migrate.etcd import snapshot
from kvd.migrate.etcd.entries import (
    ADD,
    ADD_LEARNER,
    REMOVE,
    Asked,
    ClusterVersion,
    MemberAttributes,
    MemberChange,
    Request,
)
from kvd.migrate.etcd.nodes import StoredNode, clean, event, index_of, time_of
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import Change, Kind

# An earlier expiration is taken for one that was damaged by the client.
_EXPIRATION_MIN = times.parse("2000-01-01T00:00:00Z")
_READ_ONLY = frozenset((b"/", b"/0", b"/1"))
VERSION = b"/0/version"
_ATTRIBUTES = re.compile(rb"/0/members/([0-9a-f]{1,16})/attributes")
_REPLACED = "\N{REPLACEMENT CHARACTER}"


class _Refused(ValueError):
    """The store refuses a request, which changes nothing; or it has no such node."""


Clock = Callable[[int], int]
"""Tells the time of an event by the expiration that it sets, 0 for none."""


class Store:
    """A v2 store, empty or as a snapshot has it.

    Attributes:
        index: The index of the last change.
        events: The history, as far as it is known; with what replayed entries have added.
        updates_dirs: Whether a directory can be given another TTL, which etcd 3.5 refuses.
        replaced: How many values of the snapshot hold U+FFFD, which etcd's JSON writes for bytes
            that are no UTF-8.
    """

    def __init__(self, document: dict[str, Any] | None) -> None:
        """Raises the errors that `int` and dicts do if a snapshot is not in etcd's form."""
        self.updates_dirs = True
        self.index = 0
        self.events: list[Event] = []
        self.replaced = 0
        self._root = StoredNode(b"/", None, 0, 0, 0)
        self._ending: list[tuple[int, bytes]] = []
        if document is None:
            for name in (b"0", b"1"):
                self._children(self._root)[name] = StoredNode(b"/" + name, None, 0, 0, 0)
            return
        self.index = index_of(document["CurrentIndex"])
        for node in snapshot.nodes(document):
            self._load(node)
        time_ns = 0
        for shown in snapshot.events(document):
            time_ns = time_of(shown) or time_ns
            self.events.append(event(shown, time_ns))

    def _load(self, document: dict[str, Any]) -> None:
        path = document["Path"].encode()
        is_file = document.get("Children") is None
        value = document["Value"].encode() if is_file else None
        self.replaced += is_file and _REPLACED in document["Value"]
        expiration_ns = max(times.parse(document["ExpireTime"]), 0)
        created, modified = index_of(document["CreatedIndex"]), index_of(document["ModifiedIndex"])
        node = StoredNode(path, value, created, modified, expiration_ns)
        parent, _, name = path.rpartition(b"/")
        self._children(self._find(parent or b"/"))[name] = node
        if expiration_ns:
            heappush(self._ending, (expiration_ns, path))

    def find(self, path: bytes) -> StoredNode | None:
        """Return a node, or None."""
        try:
            return self._find(path)
        except _Refused:
            return None

    # What an entry does.

    def apply(self, asked: Asked, clock: Clock) -> None:
        """Perform the request in an entry of the log, or refuse it as etcd has."""
        try:
            match asked:
                case Request():
                    self._request(asked, clock)
                case MemberChange():
                    self._member(asked, clock)
                case ClusterVersion():
                    self._set(VERSION, asked.version, clock)
                case MemberAttributes():
                    self._attributes(b"/0/members/%x/attributes" % asked.node, b"", clock)
        except _Refused:
            pass

    def _request(self, request: Request, clock: Clock) -> None:
        match request.method:
            case b"PUT":
                self._put(request, clock)
            case b"POST":
                path = b"%b/%020d" % (request.path, self.index + 1)
                self._create(Kind.CREATE, path, request, clock)
            case b"DELETE":
                self._delete(request, clock)
            case b"SYNC":
                self._expire(request.time_ns)

    def _put(self, request: Request, clock: Clock) -> None:
        compares = request.prev_index > 0 or request.prev_value != b""
        if request.prev_exist is False:
            self._create(Kind.CREATE, request.path, request, clock)
        elif compares:
            self._change(Kind.COMPARE_AND_SWAP, request, clock)
        elif request.prev_exist:
            self._change(Kind.UPDATE, request, clock)
        elif _ATTRIBUTES.fullmatch(request.path):
            self._attributes(request.path, request.value, clock)
        else:
            self._replace(request, clock)

    def _attributes(self, path: bytes, value: bytes, clock: Clock) -> None:
        if self._find(posixpath.dirname(path)).children is not None:
            self._set(path, value, clock)

    def _set(self, path: bytes, value: bytes, clock: Clock) -> None:
        self._replace(Request(b"PUT", path, value), clock)

    def _replace(self, request: Request, clock: Clock) -> None:
        path = clean(request.path)
        before = self.find(path)
        if request.refresh:
            before = self._find(path)
            request = request._replace(value=before.value or b"")
        self._create(Kind.SET, path, request, clock)

    def _create(self, kind: int, path: bytes, request: Request, clock: Clock) -> None:
        path = clean(path)
        if path in _READ_ONLY:
            raise _Refused
        expiration_ns = request.expiration_ns
        if expiration_ns < _EXPIRATION_MIN:
            expiration_ns = 0
        parent, _, name = path.rpartition(b"/")
        siblings = self._children(self._make(parent))
        before = siblings.get(name)
        if before is not None and (kind == Kind.CREATE or before.children is not None):
            raise _Refused
        prev = None if before is None else before.as_node()
        index = self.index + 1
        value = None if request.is_dir else request.value
        siblings[name] = StoredNode(path, value, index, index, expiration_ns)
        if expiration_ns:
            heappush(self._ending, (expiration_ns, path))
        change = Change(
            kind, index, path, value, request.is_dir, index, expiration_ns, request.refresh
        )
        self._record(change, prev, clock(expiration_ns))

    def _make(self, path: bytes) -> StoredNode:
        """Return a directory, made with those above it where it is missing."""
        node = self._root
        at = b""
        for name in path.split(b"/")[1:]:
            at += b"/" + name
            children = self._children(node)
            child = children.get(name)
            if child is None:
                # Nothing is made before a file that is in the way: it has all directories above it.
                child = children[name] = StoredNode(at, None, self.index + 1, self.index + 1, 0)
            node = child
        if node.children is None:
            raise _Refused
        return node

    def _change(self, kind: int, request: Request, clock: Clock) -> None:
        """Update a node, or compare and swap a file."""
        path = clean(request.path)
        if path in _READ_ONLY:
            raise _Refused
        node = self._find(path)
        is_dir = node.children is not None
        if is_dir and (kind == Kind.COMPARE_AND_SWAP or request.value or not self.updates_dirs):
            raise _Refused
        if kind == Kind.COMPARE_AND_SWAP:
            _compare(node, request)
        prev = node.as_node()
        index = self.index + 1
        value = None if is_dir else node.value if request.refresh else request.value
        if not is_dir:
            node.value, node.modified = value, index
        expiration_ns = node.expiration_ns = request.expiration_ns
        if expiration_ns:
            heappush(self._ending, (expiration_ns, path))
        shown_ns = max(expiration_ns, 1) if expiration_ns else 0
        change = Change(kind, index, path, value, is_dir, node.created, shown_ns, request.refresh)
        self._record(change, prev, clock(shown_ns))

    def _delete(self, request: Request, clock: Clock) -> None:
        path = clean(request.path)
        compares = request.prev_index > 0 or request.prev_value != b""
        if path in _READ_ONLY:
            raise _Refused
        node = self._find(path)
        is_dir = node.children is not None
        if compares:
            if is_dir:
                raise _Refused
            _compare(node, request)
        elif is_dir and not request.recursive and (node.children or not request.is_dir):
            raise _Refused
        kind = Kind.COMPARE_AND_DELETE if compares else Kind.DELETE
        self._remove(node, kind, clock(0))

    def _remove(self, node: StoredNode, kind: int, time_ns: int) -> None:
        parent, _, name = node.path.rpartition(b"/")
        prev = node.as_node()
        del self._children(self._find(parent or b"/"))[name]
        is_dir = node.children is not None
        change = Change(kind, self.index + 1, node.path, None, is_dir, node.created)
        self._record(change, prev, time_ns)

    def _expire(self, now_ns: int) -> None:
        while self._ending and self._ending[0][0] <= now_ns:
            expiration_ns, path = heappop(self._ending)
            node = self.find(path)
            if node is not None and node.expiration_ns == expiration_ns:
                self._remove(node, Kind.EXPIRE, now_ns)

    def _member(self, asked: MemberChange, clock: Clock) -> None:
        """Change the members as far as etcd allows it: one that is refused costs no index."""
        path = b"/0/members/%x" % asked.node
        removed = b"/0/removed_members/%x" % asked.node
        is_there = self.find(path) is not None
        if self.find(removed) is not None:
            raise _Refused
        if asked.kind in (ADD, ADD_LEARNER) and not asked.is_promotion:
            if is_there:
                raise _Refused
            self._create(Kind.CREATE, path + b"/raftAttributes", _NOTHING, clock)
        elif not is_there:
            raise _Refused
        elif asked.kind == REMOVE:
            self._delete(Request(b"DELETE", path, recursive=True), clock)
            self._create(Kind.CREATE, removed, _NOTHING, clock)
        else:
            self._change(Kind.UPDATE, Request(b"PUT", path + b"/raftAttributes"), clock)

    def _record(self, change: Change, prev: Node | None, time_ns: int) -> None:
        self.index = change.index
        self.events.append(Event(change, prev, time_ns))

    # Nodes.

    def _find(self, path: bytes) -> StoredNode:
        node = self._root
        if path == b"/":
            return node
        for name in path.split(b"/")[1:]:
            child = None if node.children is None else node.children.get(name)
            if child is None:
                raise _Refused
            node = child
        return node

    def _children(self, node: StoredNode) -> dict[bytes, StoredNode]:
        if node.children is None:
            raise _Refused
        return node.children


_NOTHING = Request(b"PUT", b"")


def _compare(node: StoredNode, request: Request) -> None:
    if request.prev_value not in (b"", node.value) or request.prev_index not in (0, node.modified):
        raise _Refused
