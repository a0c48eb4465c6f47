"""A queue whose turns are shared out: by lane, then by group, then by member of a group.

Each item names its lane, its group and its member. The first lane goes before all others; of the
others, and of the groups in a lane and the members in a group, each that has something queued is
served in turn. So one that queues a lot delays its own items, not those of others.

The queue is bounded. When it is full, an item of the largest group gives way to one of a smaller
group, and within that group one of its largest member; what would itself be of those is refused.
The first lane is not shared out: what it takes has to be trusted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Share(NamedTuple):
    """Whose turn an item counts as."""

    lane: int
    group: bytes
    member: bytes


class FairQueue(Generic[T]):
    """The items that wait; `lanes` is how many lanes there are, `size_max` how many items."""

    def __init__(self, lanes: int, size_max: int) -> None:
        self._lanes: list[_Lane[T]] = [_Lane() for _ in range(lanes)]
        self._next_lane = 1
        self._size_max = size_max
        self._size = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._size

    def put(self, share: Share, item: T) -> T | None:
        """Queue an item; return the item that is refused for it, maybe itself, or None."""
        refused: T | None = None
        if self._size >= self._size_max:
            lane = max(self._lanes[1:], key=_Lane.largest)
            if share.lane and self._lanes[share.lane].gives_way(share, lane.largest()):
                return item
            if not lane.groups:
                return item  # the first lane alone fills the queue
            refused = lane.drop()
            self._size -= 1
        self._lanes[share.lane].put(share.group, share.member, item)
        self._size += 1
        return refused

    def pop(self) -> T:
        """Remove and return the item whose turn it is.

        Raises:
            IndexError: none waits.
        """
        lanes = self._lanes
        turns = [0, *range(self._next_lane, len(lanes)), *range(1, self._next_lane)]
        for number in turns:
            if lanes[number].groups:
                if number:
                    self._next_lane = number % (len(lanes) - 1) + 1
                self._size -= 1
                item: T = lanes[number].pop()
                return item
        raise IndexError("the queue is empty")


class _Lane(Generic[T]):
    """The groups of one lane, in the order of their turns."""

    def __init__(self) -> None:
        self.groups: OrderedDict[bytes, _Group[T]] = OrderedDict()

    def largest(self) -> int:
        """Return how many items the largest group has."""
        return max(map(len, self.groups.values()), default=0)

    def gives_way(self, share: Share, largest: int) -> bool:
        """Return whether an item would be of the largest group, and of its largest member."""
        group = self.groups.get(share.group)
        return group is not None and len(group) >= largest and group.gives_way(share.member)

    def put(self, name: bytes, member: bytes, item: T) -> None:
        self.groups.setdefault(name, _Group()).put(member, item)

    def pop(self) -> T:
        """Take the item whose turn it is; its group's next turn is the last."""
        name, group = self.groups.popitem(last=False)
        item = group.pop()
        if len(group):
            self.groups[name] = group
        return item

    def drop(self) -> T:
        """Take the youngest item of the largest member of the largest group."""
        name = max(self.groups, key=lambda name: len(self.groups[name]))
        group = self.groups[name]
        item = group.drop()
        if not len(group):
            del self.groups[name]
        return item


class _Group(Generic[T]):
    """The members of one group, in the order of their turns."""

    def __init__(self) -> None:
        self._members: OrderedDict[bytes, deque[T]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def gives_way(self, member: bytes) -> bool:
        return len(self._members.get(member, ())) + 1 >= max(map(len, self._members.values()))

    def put(self, member: bytes, item: T) -> None:
        self._members.setdefault(member, deque()).append(item)
        self._size += 1

    def pop(self) -> T:
        items: deque[T]
        name, items = self._members.popitem(last=False)
        item = items.popleft()
        if items:
            self._members[name] = items
        self._size -= 1
        return item

    def drop(self) -> T:
        name = max(self._members, key=lambda name: len(self._members[name]))
        item = self._members[name].pop()
        if not self._members[name]:
            del self._members[name]
        self._size -= 1
        return item
