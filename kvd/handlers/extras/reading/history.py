"""The history of a key, and a file as it was: reads of the events that are kept.

    history   {"action":"history","key":"/x","first":1001,"index":1301,"limit":1000,
               "events":[{"action":"set","node":{...},"prevNode":{...},"time":"..."}]}

Newest first: the events of the key and removals of directories above it, with `recursive` of all
below it too, hidden or not. `first` is where the history begins, `limit` how many events are kept.

    at=INDEX  the file as it was after that event, as an ordinary read shows one

The events are gone through backwards in slices of about a millisecond, without a transaction
between two of them; those of other keys are not decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from kvd.handlers.extras.reading.listing import next_line
from kvd.handlers.extras.reading.nodes import node_slices, node_text
from kvd.handlers.extras.reading.scan import Pace, Scan
from kvd.handlers.extras.reading.walk import LARGE_BYTES
from kvd.json_text import LargeValue, escape
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS, Change
from kvd.storage.index.view import Passed
from kvd.v2.errors import EVENT_INDEX_CLEARED, INVALID_FIELD, KEY_NOT_FOUND, NOT_A_FILE, ApiError
from kvd.v2.extras.parameters import ReadExtras
from kvd.v2.paths import is_below
from kvd.v2.response import ACTIONS, removed_object, timestamp

PAGE_BYTES_MAX = 1 << 20
"""A page that has become so long ends, with a `X-Kvd-Next`."""
EVENTS_DEFAULT = 100
_ESCAPED_BYTES = 16 << 10
# How a record of a removal goes on behind the key: no value, in CBOR.
_NO_VALUE = b"\xf6"
_NEEDLES_MAX = 16


class Kept(Protocol):
    """The committed state, as far as it is read here."""

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""

    def events_back(self, last_index: int, needles: Sequence[bytes]) -> Iterator[Passed]:
        """Yield the events down from an index, None for those without one of the needles."""


_HEAD = b'{"action":"history","key":"%b","first":%d,"index":%d,"limit":%d,"events":['


class Span:
    """Bounds of the history, and the clock offset of its shown times.

    Attributes:
        first: The index of the first event that is held, or that would be.
        index: That of the last one.
        limit: How many are kept.
        offset_ns: What a shown time is later than the store's.
    """

    def __init__(self, first: int, index: int, limit: int, offset_ns: int) -> None:
        self.first = first
        self.index = index
        self.limit = limit
        self.offset_ns = offset_ns


def history(
    look: Callable[[], Kept],
    pace: Pace,
    key: bytes,
    extras: ReadExtras,
    span: Span,
    *,
    recursive: bool,
) -> Scan:
    """Show the events of a key; `look` returns the committed state, for one slice."""
    limit = extras.limit or EVENTS_DEFAULT
    last = span.index if extras.before is None else min(extras.before - 1, span.index)
    # All of it is joined once: an event may have 120 MB.
    pieces: list[bytes] = []
    count = size = 0
    lines = b""
    reader = _Reader(look, pace, key, recursive=recursive)
    for index, event in reader.back(last):
        if event is None or (event.change.refresh and not extras.refreshes):
            if event is None and index >= 0:  # the end of a slice
                yield size
                if pace.is_over():
                    lines = next_line(b"%d" % (index + 1))
                    break
            continue
        if count == limit or size > PAGE_BYTES_MAX:
            lines = next_line(b"%d" % (index + 1))
            break
        if count:
            pieces.append(b",")
        count += 1
        for piece in _shown(event, extras, span.offset_ns):
            pieces.append(piece)
            size += len(piece)
            if len(piece) >= _ESCAPED_BYTES:
                yield size
    head = _HEAD % (escape(key), span.first, span.index, span.limit)
    return b"".join([head, *pieces, b"]}\n"]), lines


def at(
    look: Callable[[], Kept],
    pace: Pace,
    key: bytes,
    extras: ReadExtras,
    span: Span,
    *,
    now_ns: int,
) -> Scan:
    """Show a file as it was after an event; what has ended since is shown with no `ttl` left.

    Raises:
        ApiError: 100, it was not there; 102, it was a directory; 401, that is not known any more;
            209, there is no such event yet.
    """
    wanted = extras.at or 0
    if wanted > span.index:
        raise ApiError(INVALID_FIELD, b'invalid value for "at"')
    if wanted < span.first - 1:
        raise _cleared(wanted, span)
    node = look().find(key)
    if node is None or not 0 < node.modified_index <= wanted:
        reader = _Reader(look, pace, key, recursive=False)
        node = yield from _node_at(reader, wanted, span)
    if node is None:
        raise ApiError(KEY_NOT_FOUND, key, span.index)
    if node.value is None:
        raise ApiError(NOT_A_FILE, key, span.index)
    pieces = [b'{"action":"get","node":']
    size = 0
    for piece in _node(escape(key), node, extras, now_ns, span.offset_ns):
        pieces.append(piece)
        size += len(piece)
        if len(piece) >= _ESCAPED_BYTES:
            yield size
    return b"".join([*pieces, b"}\n"]), b""


def _node_at(reader: _Reader, wanted: int, span: Span) -> Generator[int, None, Node | None]:
    """Return a node as it was after an event: as the last change before has left it.

    Without such a one, as it was found by the first one behind.
    """
    for _, event in reader.back(wanted):
        if event is not None:
            return _node_after(event.change)
        yield 0
    following = None
    for index, event in reader.back(span.index):
        if index <= wanted:
            break
        if event is None:
            yield 0
        else:
            following = event
    if following is None:
        return None
    if following.change.key != reader.key:
        raise _cleared(wanted, span)  # it went with its directory, whatever it was
    return following.prev


def _cleared(wanted: int, span: Span) -> ApiError:
    cause = b"the requested history has been cleared [%d/%d]" % (span.first, wanted)
    return ApiError(EVENT_INDEX_CLEARED, cause, span.index)


def _node_after(change: Change) -> Node | None:
    """Return a file as its change left it."""
    if change.kind in REMOVALS:
        return None
    return Node(
        change.value,
        change.created_index,
        change.index,
        change.expiration_ns,
        int(change.dir),
    )


class _Reader:
    """Goes through the events that concern a key, from the last to the first."""

    def __init__(
        self, look: Callable[[], Kept], pace: Pace, key: bytes, *, recursive: bool
    ) -> None:
        self._look = look
        self._pace = pace
        self.key = key
        self._recursive = recursive
        self._needles = _needles(key)

    def back(self, last: int) -> Iterator[tuple[int, Event | None]]:
        """Yield index and event, and where a slice ends the index reached without one."""
        while True:
            index = last + 1
            for index, event in self._look().events_back(last, self._needles):
                if event is not None and self._concerns(event.change):
                    yield index, event
                if self._pace.is_late() or (event is not None and _is_large(event)):
                    break
            else:
                return
            last = index - 1
            yield index - 1, None

    def _concerns(self, change: Change) -> bool:
        if change.key == self.key:
            return True
        if is_below(change.key, self.key):
            return self._recursive
        return change.kind in REMOVALS and change.dir and is_below(self.key, change.key)


def _needles(key: bytes) -> tuple[bytes, ...]:
    """Return of what one is in the record of each event that concerns a key."""
    if key == b"/":
        return (b"",)
    if key.count(b"/") > _NEEDLES_MAX:
        # For each directory above it one would take megabytes: all are in the first of them.
        return (b"/" + key.split(b"/", 2)[1],)
    above = []
    path = key.rpartition(b"/")[0]
    while path:
        above.append(path + _NO_VALUE)
        path = path.rpartition(b"/")[0]
    return key, *above


def _is_large(event: Event) -> bool:
    prev = event.prev.value if event.prev is not None else None
    return len(event.change.value or b"") + len(prev or b"") > LARGE_BYTES


def _shown(event: Event, extras: ReadExtras, offset_ns: int) -> Iterator[bytes]:
    """Yield an event as JSON in pieces."""
    change, prev, time_ns = event
    key = escape(change.key)
    refresh = b',"refresh":true' if change.refresh else b""
    yield b'{"action":"%b"%b,"node":' % (ACTIONS[change.kind], refresh)
    node = _node_after(change)
    if node is None:
        yield removed_object(key, change)
    else:
        yield from _node(key, node, extras, time_ns, offset_ns)
    if prev is not None:
        yield b',"prevNode":'
        yield from _node(key, prev, extras, time_ns, offset_ns)
    yield b',"time":"%b"}' % timestamp(time_ns + offset_ns)


def _node(
    key: bytes, node: Node, extras: ReadExtras, now_ns: int, offset_ns: int
) -> Iterator[bytes]:
    text = node_text(key, node, extras.shape, now_ns, offset_ns)
    if text is not None:
        yield text
        return
    for parts in node_slices(key, node, extras.shape, now_ns, offset_ns):
        for part in parts:
            if isinstance(part, LargeValue):
                for start in range(0, len(part.raw), _ESCAPED_BYTES):
                    yield escape(part.raw[start : start + _ESCAPED_BYTES])
            else:
                yield part
