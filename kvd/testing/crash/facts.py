"""Events and files as a client sees them, and what events make of files."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

REMOVALS = ("delete", "compareAndDelete", "expire")


class Violation(AssertionError):
    """A promise is broken; the text says which, and at which key and index."""


class Fact(NamedTuple):
    """One event, as far as a client can see it.

    Attributes:
        index: the index of the change.
        action: set, create, update, compareAndSwap, delete, compareAndDelete or expire.
        value: the new value; None of a directory and after a removal.
        created: the index at which the node was created.
        prev_value, prev_modified: what was there before; None and 0 if there was nothing.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    action: str
    key: str
    value: str | None
    dir: bool
    created: int
    prev_value: str | None
    prev_modified: int


class File(NamedTuple):
    """A file of the state: what a GET shows of it."""

    value: str
    created: int
    modified: int


def fact_of(event: Any) -> Fact:
    """Return the fact in the JSON of an event."""
    node, prev = event["node"], event.get("prevNode") or {}
    is_dir = bool(node.get("dir"))
    action = event["action"]
    value = None if is_dir or action in REMOVALS else node.get("value", "")
    prev_value = None if not prev or prev.get("dir") else prev.get("value", "")
    return Fact(
        node["modifiedIndex"],
        action,
        node["key"],
        value,
        is_dir,
        node["createdIndex"],
        prev_value,
        prev.get("modifiedIndex", 0),
    )


def files_of(node: Any) -> dict[str, File]:
    """Return the files in the JSON of a recursive GET."""
    found: dict[str, File] = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.get("dir"):
            waiting += node.get("nodes", [])
        else:
            found[node["key"]] = File(
                node.get("value", ""), node["createdIndex"], node["modifiedIndex"]
            )
    return found


def events_between(url: str, first: int, last: int) -> list[Fact]:
    """Return the events from one index to another, as a stream watch yields them.

    Raises:
        LookupError: the server no longer has the first ones (`--event-history-limit`).
        OSError, HTTPException, JSONDecodeError: `DISCONNECTED`.
    """
    if first > last:
        return []
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        target = f"/v2/keys/?wait=true&recursive=true&stream=true&waitIndex={first}"
        connection.request("GET", target)
        response = connection.getresponse()
        if response.status != 200:
            raise LookupError(f"no events from {first} on: {response.read().decode()}")
        facts: list[Fact] = []
        while not facts or facts[-1].index < last:
            facts.append(fact_of(json.loads(response.readline())))
        return facts
    finally:
        connection.close()


class State:
    """The files after a number of events, and every directory that there has ever been."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.directories: set[str] = set()
        self.index = 1

    def apply(self, fact: Fact) -> list[str]:
        """Take one event more, which must be the next; return the keys it changed."""
        if fact.index != self.index + 1:
            raise Violation(f"event {fact.index} follows event {self.index}: a gap or a repetition")
        before = self.files.get(fact.key)
        if before is not None and (before.value, before.modified) != (
            fact.prev_value,
            fact.prev_modified,
        ):
            raise Violation(
                f"event {fact.index} says that {fact.key} was at {fact.prev_modified} before it, "
                f"but it was at {before.modified}"
            )
        self.index = fact.index
        self._note_directories(fact.key + "/" if fact.dir else fact.key)
        if fact.action not in REMOVALS:
            if not fact.dir:
                self.files[fact.key] = File(fact.value or "", fact.created, fact.index)
            return [fact.key]
        below = fact.key.rstrip("/") + "/"
        gone = [
            key for key in self.files if key == fact.key or (fact.dir and key.startswith(below))
        ]
        for key in gone:
            del self.files[key]
        return gone

    def begin(self, files: dict[str, File], index: int) -> None:
        """Begin with what is there at an index."""
        self.files, self.index = dict(files), index
        for key in files:
            self._note_directories(key)

    def _note_directories(self, key: str) -> None:
        above = key.rpartition("/")[0]
        while above and above not in self.directories:
            self.directories.add(above)
            above = above.rpartition("/")[0]
