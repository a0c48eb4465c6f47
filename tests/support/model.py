"""The key space as a dict of paths: slow, obvious, and independent of how LMDB holds it."""

from dataclasses import dataclass, replace

from kvd.storage.format.node import Node, Obstacle
from kvd.storage.format.records import Change, Kind

REMOVALS = (Kind.DELETE, Kind.COMPARE_AND_DELETE, Kind.EXPIRE)


@dataclass(frozen=True)
class Entry:
    """A file, or a directory (`value` None), which has an id for `has_children` to ask by."""

    value: bytes | None
    created: int
    modified: int
    expiration_ns: int
    dir_id: int

    @property
    def node(self) -> Node:
        return Node(self.value, self.created, self.modified, self.expiration_ns, self.dir_id)


class Model:
    """The state that `kvd.v2.rules.decide` reads, with its own way to apply a change."""

    def __init__(self) -> None:
        self.index = 1
        self.events: list[tuple[Change, Node | None]] = []
        self._entries = {b"/": Entry(None, 0, 0, 0, 1)}
        self._directories_made = 1

    def copy(self) -> "Model":
        other = Model()
        other.index = self.index
        other.events = list(self.events)
        other._entries = dict(self._entries)
        other._directories_made = self._directories_made
        return other

    # The interface of kvd.v2.rules.Nodes

    def find(self, path: bytes) -> Node | None:
        entry = self._entries.get(path)
        return entry.node if entry else None

    def obstacle(self, path: bytes) -> Obstacle:
        for above in [*reversed(ancestors(path)), path]:
            entry = self._entries.get(above)
            if entry is None:
                return Obstacle(False, above)
            if entry.value is not None:
                return Obstacle(True, above)
        raise AssertionError(f"{path!r} is there")

    def has_children(self, dir_id: int) -> bool:
        (path,) = (path for path, entry in self._entries.items() if entry.dir_id == dir_id)
        return any(is_below(other, path) for other in self._entries)

    # Changing

    def apply(self, change: Change) -> Node | None:
        """Do what a change says; return the node that it replaced."""
        self.index += 1
        assert change.index == self.index
        before = self._entries.get(change.key)
        if change.kind in REMOVALS:
            self._entries = {
                path: entry
                for path, entry in self._entries.items()
                if path != change.key and not is_below(path, change.key)
            }
        elif change.kind == Kind.UPDATE and change.dir:
            assert before is not None
            self._entries[change.key] = replace(before, expiration_ns=change.expiration_ns)
        else:
            for path in reversed(ancestors(change.key)):
                if path not in self._entries:
                    self._entries[path] = self._new(None, change.index, 0)
            entry = self._new(change.value, change.index, change.expiration_ns)
            self._entries[change.key] = replace(entry, created=change.created_index)
        prev = before.node if before else None
        self.events.append((change, prev))
        return prev

    def due(self, now_ns: int) -> list[tuple[int, bytes]]:
        """When what has expired by now expired, and its path, in no order of equals."""
        return sorted(
            (entry.expiration_ns, path)
            for path, entry in self._entries.items()
            if 0 < entry.expiration_ns <= now_ns
        )

    def tree(self) -> dict[bytes, tuple[object, ...]]:
        """All nodes by path, as `tests.support.stores.tree` tells them."""
        return {path: (e.node[:4], e.value is None) for path, e in self._entries.items()}

    def _new(self, value: bytes | None, index: int, expiration_ns: int) -> Entry:
        if value is None:
            self._directories_made += 1
        dir_id = self._directories_made if value is None else 0
        return Entry(value, index, index, expiration_ns, dir_id)


def ancestors(path: bytes) -> list[bytes]:
    """The directories above a path, nearest first, the root last."""
    found = []
    while path != b"/":
        path = path.rpartition(b"/")[0] or b"/"
        found.append(path)
    return found


def is_below(path: bytes, ancestor: bytes) -> bool:
    return path != ancestor and ancestor in ancestors(path)
