"""Scans of a directory: counting what is below it, searching it, and the marks of its pages.

They go through far more than they show, in slices of about a millisecond, and hold no transaction
between two of them: each node is judged as it is when the scan comes by. One that takes too long
ends with `"complete":false`.

    count   {"action":"count","node":{...},"keys":3,"dirs":1,"bytes":42,"expiring":0,
             "complete":true}
    find    {"action":"find","nodes":[{"key":"/d/a","size":9,"around":"...text...","in":"values",
             "modifiedIndex":7,"createdIndex":7}],"scanned":1201,"complete":true}
    marks   {"action":"get","node":{...},"count":1200,"hidden":2,"every":500,
             "marks":["dev-0499","dev-0999"]}

`node` is the directory without its children.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Protocol

from kvd.handlers.extras.reading.listing import BEHIND_HIDDEN, HIDDEN, next_line
from kvd.handlers.extras.reading.search import Search
from kvd.handlers.extras.reading.walk import LARGE_BYTES, Batch, State, Walk
from kvd.json_text import escape
from kvd.v2.extras.parameters import ReadExtras

# Names that are read at once: about a tenth of a millisecond. Where rows have to be looked at, too.
_NAMES_AT_ONCE = 1000
_ROWS_AT_ONCE = 100


class Pace(Protocol):
    """Time limits of a scan."""

    def is_late(self) -> bool:
        """Return whether the slice has lasted long enough."""

    def is_over(self) -> bool:
        """Return whether the scan has."""


Look = Callable[[], State]
"""Returns the committed state, for one slice."""
Scan = Generator[int, None, tuple[bytes, bytes]]
"""Yields at the end of each slice how many bytes it holds; returns a body and header lines."""


def count(look: Look, pace: Pace, walk: Walk, node: bytes) -> Scan:
    """Count the nodes of a walk through a directory, and the bytes of their values.

    Args:
        look: returns the state.
        pace: how long it may take.
        walk: through the directory.
        node: the directory itself as JSON.
    """
    keys = dirs = size = expiring = 0
    complete = b"true"
    for batch in _batches(look, pace, walk):
        if batch is None:
            yield 0
            if pace.is_over():
                complete = b"false"
                break
            continue
        for _, (value, _, _, expiration_ns, _) in batch[1]:
            if value is None:
                dirs += 1
            else:
                keys += 1
                size += len(value)
            if expiration_ns:
                expiring += 1
    figures = b'"keys":%d,"dirs":%d,"bytes":%d,"expiring":%d' % (keys, dirs, size, expiring)
    body = b'{"action":"count","node":%b,%b,"complete":%b}\n' % (node, figures, complete)
    return body, b""


def find(look: Look, pace: Pace, walk: Walk, extras: ReadExtras) -> Scan:
    """Search the nodes of a walk for a text; the arguments are as for `count`."""
    search = Search(extras)
    complete, lines = b"true", b""
    for batch in _batches(look, pace, walk):
        if batch is None:
            # No row is open any more, so that this may take its time.
            for _ in search.look_at_large():
                if pace.is_late():
                    yield search.size
            yield search.size
        else:
            search.look_at(*batch)
        if search.is_full or (batch is None and pace.is_over()):
            complete, lines = b"false", next_line(search.place)
            break
    nodes = b",".join(search.found)
    answer = b'{"action":"find","nodes":[%b],"scanned":%d,"complete":%b}\n'
    return answer % (nodes, search.scanned, complete), lines


def marks(look: Look, pace: Pace, key: bytes, node: bytes, *, extras: ReadExtras) -> Scan:
    """Name the last one of each so many children; the arguments are as for `count`."""
    every = extras.marks or 1
    names: list[bytes] = []
    size = shown = hidden = 0
    for stretch in _stretches(look, pace, key, extras.prefix):
        if stretch is None:
            yield size
            continue
        found, are_hidden = stretch
        hidden += len(found) if are_hidden else 0
        if are_hidden and not extras.hidden:
            continue
        # Of these, what completes a stretch.
        for place in range(every - shown % every - 1, len(found), every):
            names.append(b'"%b"' % escape(found[place]))
            size += len(names[-1])
        shown += len(found)
    answer = b'{"action":"get","node":%b,"count":%d,"hidden":%d,"every":%d,"marks":[%b]}\n'
    return answer % (node, shown, hidden, every, b",".join(names)), b""


def _stretches(
    look: Look, pace: Pace, key: bytes, prefix: bytes
) -> Iterator[tuple[list[bytes], bool] | None]:
    """Yield the names of a directory's children, some at a time, and whether these are hidden.

    None is the end of a slice.
    """
    last = _behind(prefix)
    dir_id = 0
    for first, end, are_hidden in (
        (b"", HIDDEN, False),
        (HIDDEN, BEHIND_HIDDEN, True),
        (BEHIND_HIDDEN, b"", False),
    ):
        place: bytes | None = max(first, prefix)
        bound = min(filter(None, (end, last)), default=b"")
        while place is not None:
            state = look()
            node = state.nodes.find(key)
            if node is None or (dir_id and node.dir_id != dir_id):
                return
            dir_id = node.dir_id
            is_late = False
            while place is not None and not is_late:
                names, place = _names(state, dir_id, place)
                if bound and (place is None or place >= bound):
                    del names[bisect_left(names, bound) :]
                    place = None
                yield names, are_hidden
                is_late = pace.is_late()
            yield None


def _names(state: State, dir_id: int, first: bytes) -> tuple[list[bytes], bytes | None]:
    """Return the names of some children, and the name from which to go on, None at the end."""
    if state.nodes is state.rows:
        names = state.rows.names(dir_id, first, _NAMES_AT_ONCE)
        return names, names[-1] + b"\0" if len(names) == _NAMES_AT_ONCE else None
    rows = list(islice(state.rows.children(dir_id, first), _ROWS_AT_ONCE))
    names = [name for name, node in rows if not 0 < node.expiration_ns <= state.now_ns]
    return names, rows[-1][0] + b"\0" if len(rows) == _ROWS_AT_ONCE else None


def _behind(prefix: bytes) -> bytes:
    """Return the first name behind those with a prefix, none if there is no such."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes((kept[-1] + 1,)) if kept else b""


def _batches(look: Look, pace: Pace, walk: Walk) -> Iterator[Batch | None]:
    """Yield the nodes of a walk, and None at the end of each slice, as behind a large value."""
    goes_on = True
    while goes_on:
        goes_on = False
        for batch in walk.go_on(look()):
            yield batch
            value = batch[1][-1][1].value if batch[1] else None
            if pace.is_late() or (value is not None and len(value) > LARGE_BYTES):
                goes_on = True
                break
        walk.pause()
        if goes_on:
            yield None
