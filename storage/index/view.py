"""Reading a state, in memory or in LMDB: nodes by path, children, documents.

    Nodes     single nodes: all that the rules need           index/pending.py
    View      and scans: children, documents                  index/state.py, index/index_view.py
    ViewAt    a view without what has ended by a time

A node is looked up by the id of its directory and its name. Ids are never reused, so nothing below
a removed directory can be reached, though its rows are there until they are freed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias

from kvd.storage.format.event import Event
from kvd.storage.format.node import (
    ROOT,
    ROOT_ID,
    ROOT_PREFIX,
    Node,
    Obstacle,
    child_key,
    encode_key,
    has_ended,
    parent_prefix,
)
from kvd.storage.format.records import Document

CACHED_PATH_BYTES_MAX = 256
"""Directories are cached for paths up to this length: a path of 64 KB has 32,000 ancestors, whose
paths together would take a gigabyte."""
CACHED_PATHS_MAX = 65_536

Passed: TypeAlias = tuple[int, Event | None]
"""The index of an event that a scan passed, and the event if it was decoded."""


class Nodes(ABC):
    """The nodes of one state, by their paths.

    `directories` holds the `parent_prefix` of directories by their paths, that of the root by the
    empty one.
    """

    directories: dict[bytes, bytes]

    @abstractmethod
    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""

    @abstractmethod
    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden by its name or not."""

    @abstractmethod
    def document(self, what: str, name: str) -> Document | None:
        """Return the document of a name, or None."""

    @abstractmethod
    def documents(self, what: str = "") -> list[Document]:
        """Return all documents of one sort, or of all, by their names."""

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""
        parent, _, name = path.rpartition(b"/")
        if not name:
            return ROOT
        prefix = self._directory(parent)
        return None if prefix is None else self.node(child_key(prefix, name))

    def obstacle(self, path: bytes) -> Obstacle:
        """Return what keeps a path that `find` does not know from leading anywhere."""
        parent = path.rpartition(b"/")[0]
        if self._directory(parent) is not None:
            return Obstacle(False, path)
        names = path.split(b"/")[1:]
        dir_id = ROOT_ID
        for depth, name in enumerate(names, 1):
            node = self.node(encode_key(dir_id, name))
            if node is None or not node.dir_id:
                return Obstacle(node is not None, b"/" + b"/".join(names[:depth]))
            dir_id = node.dir_id
        raise AssertionError(f"nothing keeps {path!r} from leading to a directory")

    def first_ended(self, path: bytes, now_ns: int) -> tuple[bytes, Node] | None:
        """Return the first node on the way to a path, itself included, that has ended; and where.

        One look per component, however deep the path.
        """
        dir_id = ROOT_ID
        length = 0
        for name in path[1:].split(b"/"):
            node = self.node(encode_key(dir_id, name)) if name else None
            if node is None:
                return None
            length += 1 + len(name)
            if has_ended(node, now_ns):
                return path[:length], node
            if not node.dir_id:
                return None
            dir_id = node.dir_id
        return None

    def reached(self, path: bytes, key: bytes, expiration_ns: int) -> Node | None:
        """Return the node at a path if it is the very one that a row of `ttl` speaks of."""
        parent, _, name = path.rpartition(b"/")
        prefix = self._directory(parent)
        if prefix is None or child_key(prefix, name) != key:
            return None
        node = self.node(key)
        return node if node is not None and node.expiration_ns == expiration_ns else None

    def _directory(self, path: bytes) -> bytes | None:
        """Return the `parent_prefix` of the directory at a path (empty for the root), or None."""
        return self.directories.get(path) or self._walk(path)

    def _walk(self, path: bytes) -> bytes | None:
        """Return the `parent_prefix` of the directory at a path, or None."""
        prefix = ROOT_PREFIX
        length = 0
        for name in path[1:].split(b"/"):
            node = self.node(child_key(prefix, name))
            if node is None or not node.dir_id:
                return None
            prefix = parent_prefix(node.dir_id)
            length += 1 + len(name)
            self._remember(path, length, prefix)
        return prefix

    def _remember(self, path: bytes, length: int, prefix: bytes) -> None:
        directories = self.directories
        if length <= CACHED_PATH_BYTES_MAX:
            if len(directories) >= CACHED_PATHS_MAX:
                forget_directories(directories)
            directories[path[:length]] = prefix


class View(Nodes):
    """A state whose directories can be listed, too."""

    @abstractmethod
    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, names and nodes, in the byte order of the names.

        It begins with the name `first`, or the next one behind it: nothing before is looked at.
        """

    @abstractmethod
    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, in order: from `first` on, up to `limit`."""

    @abstractmethod
    def each_document(self, what: str = "") -> Iterator[Document]:
        """Yield all documents of one sort, or of all, in no order that means anything."""

    def at(self, now_ns: int) -> View:
        """Return the same state without what has ended by a time; it ends with this view."""
        return ViewAt(self, now_ns)


class ViewAt(View):
    """The nodes at a time: what has ended by then is hidden, with all that hangs below it.

    Until its expiry has been committed, what has ended still stands there.
    """

    def __init__(self, view: View, now_ns: int) -> None:
        self._view = view
        self._now_ns = now_ns
        self.directories = {b"": ROOT_PREFIX}

    def node(self, key: bytes) -> Node | None:
        """Return the node under a key, or None."""
        node = self._view.node(key)
        return None if node is None or has_ended(node, self._now_ns) else node

    def children(self, dir_id: int, first: bytes = b"") -> Iterator[tuple[bytes, Node]]:
        """Iterate over a directory's children, as `View.children`."""
        now_ns = self._now_ns
        found = self._view.children(dir_id, first)
        return (child for child in found if not has_ended(child[1], now_ns))

    def names(self, dir_id: int, first: bytes, limit: int) -> list[bytes]:
        """Return the names of some children, as `View.names`, though not as fast."""
        return [name for name, _ in islice(self.children(dir_id, first), limit)]

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden by its name or not."""
        return next(self.children(dir_id), None) is not None

    def document(self, what: str, name: str) -> Document | None:
        """Return the document of a name, or None."""
        return self._view.document(what, name)

    def documents(self, what: str = "") -> list[Document]:
        """Return all documents of one sort, or of all, by their names."""
        return self._view.documents(what)

    def each_document(self, what: str = "") -> Iterator[Document]:
        """Yield all documents of one sort, or of all, as `View.each_document`."""
        return self._view.each_document(what)


def forget_directories(directories: dict[bytes, bytes]) -> None:
    """Forget all directories but the root."""
    directories.clear()
    directories[b""] = ROOT_PREFIX
