"""Fair queue: turns are shared by lane, then by group, then by member of a group.

Each item names its lane, its group and its member. The first lane goes before all others; of the
others, and of the groups in a lane and the members in a group, each that has something queued is
served in turn. So one that queues a lot delays its own items, not those of others.

Where very many have queued one item each, turns alone let a newcomer wait for all others. With
`favours_new` every second turn is therefore that of the newest: of the newest group that has had no
turn yet, and of its newest member likewise (unless an item says that its member is not a new one).
And of one member always the newest item is taken. The last lane has one turn in eight.

The queue is bounded. When it is full, the oldest item of the largest member of the largest group
gives way. The first lane is not shared: its items must be trusted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

_LAST_LANE_EVERY = 8


class Share(NamedTuple):
    """Whose turn an item counts as; a member that is not new has not had its turn just now."""

    lane: int
    group: bytes
    member: bytes
    is_new: bool = True


class FairQueue(Generic[T]):
    """The items that wait.

    Args:
        lanes: how many lanes there are.
        size_max: how many items may wait.
        favours_new: whether the newest have every second turn.
    """

    def __init__(self, lanes: int, size_max: int, *, favours_new: bool = False) -> None:
        self._lanes: list[_Level[T]] = [
            _Level(depth=2, favours_new=favours_new) for _ in range(lanes)
        ]
        self._next_lane = 1
        self._turn = 0
        self._size_max = size_max
        self._size = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._size

    def put(self, share: Share, item: T) -> T | None:
        """Queue an item; return the item that gives way to it, maybe itself, or None."""
        refused: T | None = None
        if self._size >= self._size_max:
            lane = max(self._lanes[1:], key=_Level.largest)
            if not lane.size:
                return item  # the first lane alone fills the queue
            refused = lane.drop()
            self._size -= 1
        self._lanes[share.lane].put(share, item)
        self._size += 1
        return refused

    def pop(self) -> T:
        """Remove and return the item whose turn it is.

        Raises:
            IndexError: none waits.
        """
        for number in self._turns():
            lane = self._lanes[number]
            if lane.size:
                self._size -= 1
                if 0 < number < len(self._lanes) - 1:
                    self._next_lane = number + 1
                item: T = lane.pop()
                return item
        raise IndexError("the queue is empty")

    def _turns(self) -> list[int]:
        """Return the lanes in the order in which they have the next turn."""
        last = len(self._lanes) - 1
        self._turn += 1
        shared = [*range(self._next_lane, last), *range(1, min(self._next_lane, last))]
        return [0, last, *shared] if self._turn % _LAST_LANE_EVERY == 0 else [0, *shared, last]


class _Items(Generic[T]):
    """The items of one member, in the order in which they came."""

    __slots__ = ("_favours_new", "_items", "size")

    def __init__(self, *, favours_new: bool) -> None:
        self.size = 0
        self._favours_new = favours_new
        self._items: deque[T] = deque()

    def put(self, _: Share, item: T) -> None:
        self._items.append(item)
        self.size += 1

    def pop(self) -> T:
        self.size -= 1
        return self._items.pop() if self._favours_new else self._items.popleft()

    def drop(self) -> T:
        self.size -= 1
        return self._items.popleft()


class _Level(Generic[T]):
    """The groups of one lane, or the members of one group, in the order of their turns."""

    __slots__ = (
        "_by_size", "_depth", "_favours_new", "_is_newest_next", "_largest", "_new", "_parts",
        "size",
    )  # fmt: skip

    def __init__(self, depth: int, *, favours_new: bool) -> None:
        self.size = 0
        self._depth = depth
        self._favours_new = self._is_newest_next = favours_new
        self._parts: OrderedDict[bytes, _Level[T] | _Items[T]] = OrderedDict()
        # Those that have had no turn since they came.
        self._new: OrderedDict[bytes, None] = OrderedDict()
        # By how many items they have, to find the largest in one step however many there are.
        self._by_size: dict[int, OrderedDict[bytes, None]] = {}
        self._largest = 0

    def largest(self) -> int:
        """Return how many items the largest part has."""
        return self._largest

    def put(self, share: Share, item: T) -> None:
        is_group = self._depth > 1
        name = share.group if is_group else share.member
        part = self._parts.get(name)
        if part is None:
            part = self._make()
            self._parts[name] = part
            if is_group or share.is_new:
                self._new[name] = None
        part.put(share, item)
        self._resized(name, part.size - 1, part.size)

    def _make(self) -> _Level[T] | _Items[T]:
        if self._depth > 1:
            return _Level(self._depth - 1, favours_new=self._favours_new)
        return _Items(favours_new=self._favours_new)

    def pop(self) -> T:
        """Take an item of the part whose turn it is, whose next turn is the last then."""
        name = next(reversed(self._new)) if self._is_newest_next and self._new else None
        self._is_newest_next = self._favours_new and name is None
        if name is None:
            name = next(iter(self._parts))
        self._new.pop(name, None)
        self._parts.move_to_end(name)
        part = self._parts[name]
        item = part.pop()
        self._resized(name, part.size + 1, part.size)
        return item

    def drop(self) -> T:
        """Take the oldest item of the largest member, the one that has been so for longest."""
        name = next(iter(self._by_size[self._largest]))
        part = self._parts[name]
        item = part.drop()
        self._resized(name, part.size + 1, part.size)
        return item

    def _resized(self, name: bytes, before: int, after: int) -> None:
        """Note that a part has one item more or less; an empty part is removed."""
        self.size += after - before
        if before:
            equals = self._by_size[before]
            del equals[name]
            if not equals:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, OrderedDict())[name] = None
        else:
            del self._parts[name]
            self._new.pop(name, None)
        if after > self._largest or self._largest not in self._by_size:
            self._largest = after
