"""Walks over a tree, with changes between their slices."""

import json
from collections.abc import Callable
from typing import Any

from kvd.handlers.extras.reading.scan import Scan
from kvd.handlers.extras.reading.walk import State, Walk
from kvd.storage.store import Store
from kvd.v2.commands import Set
from tests.support.stores import write

Between = Callable[[int], object]
NOT_AT_ALL: Between = lambda _: None  # noqa: E731


class Hurried:
    """Ends each slice as soon as can be, and the scan after so many."""

    def __init__(self, slices: int = 1_000_000) -> None:
        self.left = slices

    def is_late(self) -> bool:
        return True

    def is_over(self) -> bool:
        self.left -= 1
        return self.left <= 0


def state(store: Store, now_ns: int = 0) -> State:
    rows = store.view
    return State(rows, rows.at(now_ns) if now_ns else rows, now_ns)


def run(scan: Scan, between: Between = NOT_AT_ALL) -> tuple[Any, bytes, int]:
    """The answer, its header lines, and how many slices there were."""
    slices = 1
    while True:
        try:
            next(scan)
        except StopIteration as end:
            body, lines = end.value
            assert body.endswith(b"}\n")
            return json.loads(body), lines, slices
        between(slices)
        slices += 1


def walked(store: Store, walk: Walk, between: Between = NOT_AT_ALL) -> list[bytes]:
    """The paths that a walk comes by, with a pause after each batch."""
    found: list[bytes] = []
    slices = 0
    while True:
        for prefix, nodes in walk.go_on(state(store)):
            found += [prefix + name for name, _ in nodes]
            break
        else:
            return found
        walk.pause()
        between(slices)
        slices += 1


def make(store: Store, *paths: str) -> None:
    write(store, *(Set(path.encode(), b"v") for path in paths))


def walk_all(key: bytes = b"/d", **wishes: Any) -> Walk:
    return Walk(key, **{"recursive": True, "hidden": False} | wishes)
