"""Cache of responses to reads of directories, brought up to date when they are read again.

Clients of a configuration store read the same directories again and again, and find little of them
changed. So a response is cached together with its parts (listing.py). Changes since the last read
are noted; the next read renders those nodes only, which costs a hundredth of rendering a thousand.
A cached response depends on the committed state alone: one that shows a TTL is not cached.

To note a change costs the writer, so a response that is not read again is dropped after some
changes. A rare change drops it at once: of a directory, a directory made along a path, a TTL.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable

from kvd.handlers.keys.listing import KEPT_BODY_BYTES_MAX, Directory
from kvd.json_text import escape
from kvd.storage.format.records import REMOVALS, Change
from kvd.storage.index.history import LateEvent
from kvd.v2.response import FILE

_KEPT_BYTES_MAX = 64 << 20
# What is kept of a body: its parts, its text (of directories in it, once more), and changes.
_BYTES_PER_BODY_BYTE = 5
# And of each, however short it is.
_OVERHEAD_BYTES = 8 << 10
# An answer outlives changes to a quarter of its nodes between two reads, but at least to so many;
# and changes of its own length, keys included, but at least of so many bytes.
_CHANGES_MIN = 16
_CHANGED_BYTES_MIN = 4 << 10


class ListingCache:
    """The answers that are kept, by directory; those longest unread go first.

    Attributes:
        kept: Those, by the directory and whether they are recursive.
    """

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[bytes, bool], _Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self.kept)

    def find(self, key: bytes, *, recursive: bool) -> bytes | None:
        """Return the body that answers a read of a directory, if it is kept."""
        kept = self.kept.get((key, recursive))
        if kept is None:
            return None
        if kept.changes:
            before = len(kept.body)
            if not kept.catch_up():
                self._drop((key, recursive))
                return None
            self._bytes += (len(kept.body) - before) * _BYTES_PER_BODY_BYTE
        self.kept.move_to_end((key, recursive))
        return kept.body

    def keep(self, key: bytes, body: bytes, parts: Directory, *, recursive: bool) -> None:
        """Keep an answer of the committed state, unless it is too large."""
        if len(body) > KEPT_BODY_BYTES_MAX:
            return
        self._drop((key, recursive))
        self.kept[key, recursive] = _Kept(key, body, parts)
        self._bytes += _OVERHEAD_BYTES + len(body) * _BYTES_PER_BODY_BYTE
        while self._bytes > _KEPT_BYTES_MAX:
            self._drop(next(iter(self.kept)))

    def observe(self, events: Iterable[LateEvent]) -> None:
        """Take note of what a batch has changed."""
        for event, _ in events:
            self.changed(event.change)

    def changed(self, change: Change) -> None:
        """Take note of a change in all that shows it."""
        path = key = change.key
        if change.dir:
            below = key + b"/"
            for place in [place for place in self.kept if place[0].startswith(below)]:
                self._drop(place)
            self._drop((key, False))
            self._drop((key, True))
        kept = self.kept
        while path != b"/":
            child, path = path, path.rpartition(b"/")[0] or b"/"
            if (path, False) in kept and not kept[path, False].note_child(child, change):
                self._drop((path, False))
            if (path, True) in kept and not kept[path, True].note(change):
                self._drop((path, True))

    def _drop(self, place: tuple[bytes, bool]) -> None:
        kept = self.kept.pop(place, None)
        if kept is not None:
            self._bytes -= _OVERHEAD_BYTES + len(kept.body) * _BYTES_PER_BODY_BYTE


class _Kept:
    """One answer: its text, its parts, and the changes that neither shows yet.

    Those are by path: the last change of a file, or None for one somewhere below the path.
    """

    __slots__ = (
        "_changed_bytes", "_changed_bytes_max", "_changes_max", "_parts", "_prefix_bytes",
        "body", "changes",
    )  # fmt: skip

    def __init__(self, key: bytes, body: bytes, parts: Directory) -> None:
        self.body = body
        self.changes: dict[bytes, Change | None] = {}
        self._parts = parts
        self._prefix_bytes = len(key.rstrip(b"/")) + 1
        self._changes_max = max(_CHANGES_MIN, body.count(b'"createdIndex":') // 4)
        self._changed_bytes = 0
        self._changed_bytes_max = max(_CHANGED_BYTES_MIN, len(body))

    def note(self, change: Change) -> bool:
        """Note a change of a node in it; return whether it can be kept."""
        if change.dir or change.expiration_ns or change.refresh:
            return False
        before = self.changes.get(change.key)
        if before is not None:
            self._changed_bytes -= _size(before)
        self.changes[change.key] = change
        self._changed_bytes += _size(change)
        return self._has_room()

    def note_child(self, child: bytes, change: Change) -> bool:
        """Note a change of one of its children, or below it; return whether it can be kept."""
        if child == change.key:
            return self.note(change)
        if child not in self.changes:
            self._changed_bytes += len(child)
        if self.changes.setdefault(child) is not None:
            return False  # what was a file is a directory now
        return self._has_room()

    def _has_room(self) -> bool:
        return (
            len(self.changes) <= self._changes_max
            and self._changed_bytes <= self._changed_bytes_max
        )

    def catch_up(self) -> bool:
        """Bring it up to date; return whether that could be done."""
        changes, self.changes = self.changes, {}
        self._changed_bytes = 0
        for path, change in changes.items():
            if not _apply(self._parts, path[self._prefix_bytes :].split(b"/"), change):
                return False
        self.body = self._parts.body()
        return True


def _size(change: Change) -> int:
    """Return what a change keeps: a hidden node, which the answer does not show, may be large."""
    return len(change.key) + len(change.value or b"")


def _apply(directory: Directory, names: list[bytes], change: Change | None) -> bool:
    """Show a change of the node at a path of names; return whether that could be done."""
    for name in names[:-1]:
        if name[:1] == b"_":
            return True
        place, is_there = _find(directory, name)
        below = directory.shown[place][1] if is_there else None
        if not isinstance(below, Directory):
            return False  # a directory that was made along the way
        directory.touch()
        directory = below
    directory.touch()
    return _apply_here(directory, names[-1], change)


def _apply_here(directory: Directory, name: bytes, change: Change | None) -> bool:
    if name[:1] == b"_":
        return True
    place, is_there = _find(directory, name)
    if change is None:
        return is_there
    if change.kind in REMOVALS:
        if is_there:
            del directory.shown[place]
        return True
    path = directory.prefix + escape(name)
    value = escape(change.value or b"")
    text = FILE % (path, value, change.index, change.created_index)
    directory.shown[place : place + is_there] = [(name, text)]
    return True


def _find(directory: Directory, name: bytes) -> tuple[int, bool]:
    """Return the place of a child among the shown ones, and whether it is there."""
    shown = directory.shown
    place = bisect_left(shown, (name,))
    return place, place < len(shown) and shown[place][0] == name
