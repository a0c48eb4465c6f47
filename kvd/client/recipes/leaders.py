"""The leader of an election, as its entries show it: the value of the lowest one."""

from __future__ import annotations

import json
import posixpath
from typing import Any

from kvd.client.model import Event, Snapshot
from kvd.client.operations import Operations
from kvd.client.watches import Following
from kvd.client.wire import Operation


class Observing:
    """The state of one observation: the entries of a lock's directory, kept up to date.

    Attributes:
        is_closed: whether the program has closed it.
    """

    def __init__(self, ops: Operations, name: str) -> None:
        self.is_closed = False
        self._following = Following(ops, name)
        self._directory = posixpath.normpath("/" + name.lstrip("/"))
        self._entries: dict[str, str] = {}
        self._shown: tuple[str, str] | None = None
        self._has_shown = False

    def next(self, timeout: float | None = None) -> Operation[str | None]:
        """Return the leader's value at first, then at each change; None while there is none.

        Raises:
            WatchTimeout: nothing has happened for so many seconds.
        """
        while True:
            self._take((yield from self._following.next(timeout)))
            leader = min(self._entries.items(), default=None)
            if leader != self._shown or not self._has_shown:
                self._shown, self._has_shown = leader, True
                return None if leader is None else value_of(leader[1])

    def _take(self, news: Snapshot | Event) -> None:
        if isinstance(news, Snapshot):
            self._entries.clear()
            for node in news.nodes.values():
                self._note(node.key, node.value)
        elif news.action in ("delete", "compareAndDelete", "expire"):
            for key in [key for key in self._entries if news.removes(key)]:
                del self._entries[key]
        else:
            self._note(news.node.key, news.node.value)

    def _note(self, key: str, value: str | None) -> None:
        if value is not None and posixpath.dirname(key) == self._directory:
            self._entries[key] = value

    def let_go(self) -> None:
        """Close the connection."""
        self._following.is_closed = self.is_closed
        self._following.let_go()


def value_of(entry: str) -> str:
    """Return what the owner of an entry shows; of another program's entry, all of its text."""
    try:
        owner: Any = json.loads(entry)
    except ValueError:
        return entry
    return str(owner.get("value", "")) if isinstance(owner, dict) and "id" in owner else entry
