"""Events, nodes and errors as the bytes that etcd's JSON encoder (Go's) would write.

An object's fields come in Go's order and are left out when zero or empty:

    event  action node prevNode
    node   key value dir expiration ttl nodes modifiedIndex createdIndex
    error  errorCode message cause index

Strings are escaped as Go does (kvd/json_text.py). There are no spaces; every body ends with a
newline.

Keys and values are bytes throughout, so joining is cheaper than any JSON library. `now_ns` is the
time that a shown `ttl` counts from, in the store's time as expirations are; `offset_ns` is what a
shown `expiration`, a time of the wall clock, is later than that (kvd/core/clock.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from kvd.json_text import LARGE_VALUE_BYTES, LargeValue, Parts, escape, joined
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS, Change, Kind
from kvd.v2.errors import TABLE, ApiError

ACTIONS: dict[int, bytes] = {
    Kind.SET: b"set",
    Kind.CREATE: b"create",
    Kind.UPDATE: b"update",
    Kind.COMPARE_AND_SWAP: b"compareAndSwap",
    Kind.DELETE: b"delete",
    Kind.COMPARE_AND_DELETE: b"compareAndDelete",
    Kind.EXPIRE: b"expire",
}
_ACTION_BY_KIND = [ACTIONS.get(kind, b"") for kind in range(max(ACTIONS) + 1)]
_BODY_BY_KIND = [b'{"action":"%b"}\n' % action for action in _ACTION_BY_KIND]

FILE = b'{"key":"%b","value":"%b","modifiedIndex":%d,"createdIndex":%d}'
"""A file that does not expire: key and value (escaped), modified index, created index."""
FILE_THAT_EXPIRES = b'{"key":"%b","value":"%b"%b,"modifiedIndex":%d,"createdIndex":%d}'
"""Another one: its `expiration` follows the value."""
REMOVED_FILE = b'{"key":"%b","modifiedIndex":%d,"createdIndex":%d}'
"""A file that was removed: key (escaped), modified index, created index."""

_NS = 1_000_000_000
_new = tuple.__new__


# Cached: a batch of refreshes has one expiration, and replaces those of few batches before it.
@lru_cache(maxsize=64)
def timestamp(ns: int) -> bytes:
    """Return RFC 3339 in UTC with up to nine digits of a second, trailing zeros cut."""
    seconds, fraction = divmod(ns, _NS)
    text = _second(seconds)
    if fraction:
        text += b".%09d" % fraction
        text = text.rstrip(b"0")
    return text + b"Z"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> bytes:
    # What expires within a second shares most of its text.
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode()


def ttl_s(expiration_ns: int, now_ns: int) -> int:
    """Return the whole seconds left, rounded up; none are left of what has ended."""
    return max(0, -((now_ns - expiration_ns) // _NS))


def node_object(key: bytes, node: Node, now_ns: int, offset_ns: int = 0) -> bytes:
    """Return a node as JSON, without children; `key` is escaped already."""
    value, created, modified, expiration_ns, _ = node
    if value is None:
        return directory_start(key, node, now_ns, offset_ns) + directory_end(node, has_nodes=False)
    if expiration_ns:
        middle = expiration(expiration_ns, now_ns, offset_ns)
        return FILE_THAT_EXPIRES % (key, escape(value), middle, modified, created)
    return FILE % (key, escape(value), modified, created)


def directory_start(key: bytes, node: Node, now_ns: int, offset_ns: int = 0) -> bytes:
    """Return a directory's JSON as far as its children; `key` is escaped already."""
    expiration_ns = node.expiration_ns
    middle = expiration(expiration_ns, now_ns, offset_ns) if expiration_ns else b""
    return b'{"key":"%b","dir":true%b' % (key, middle)


def directory_end(node: Node, *, has_nodes: bool) -> bytes:
    """Return what ends a directory's JSON; the root has no indexes."""
    end = b"]" if has_nodes else b""
    if not node.modified_index:
        return end + b"}"
    return b'%b,"modifiedIndex":%d,"createdIndex":%d}' % (
        end,
        node.modified_index,
        node.created_index,
    )


def event_body(event: Event, offset_ns: int = 0) -> bytes | None:
    """Return the body of an event, for watchers and for its writer.

    None where it shows a value that is too large to be rendered at once, see `event_parts`.
    """
    change, prev, time_ns = event
    value = change.value
    # A slice costs less than a call, and this is done for each write.
    if value and value[LARGE_VALUE_BYTES : LARGE_VALUE_BYTES + 1]:
        return None
    action, shown = _ACTION_BY_KIND[change.kind], changed_node(change, time_ns, offset_ns)
    if prev is None:
        return b'{"action":"%b","node":%b}\n' % (action, shown)
    value = prev.value
    if value and value[LARGE_VALUE_BYTES : LARGE_VALUE_BYTES + 1]:
        return None
    before = node_object(escape(change.key), prev, time_ns, offset_ns)
    return b'{"action":"%b","node":%b,"prevNode":%b}\n' % (action, shown, before)


def changed_node(change: Change, time_ns: int, offset_ns: int = 0) -> bytes:
    """Return the node of an event as JSON."""
    kind, index, key, value, is_dir, created, expiration_ns, _ = change
    key = escape(key)
    if kind in REMOVALS:
        return removed_object(key, change)
    node = _new(Node, (value, created, index, expiration_ns, int(is_dir)))
    return node_object(key, node, time_ns, offset_ns)


def event_parts(event: Event, offset_ns: int = 0) -> Parts:
    """Return an event, as `event_body` does, in parts: its values may be large."""
    (kind, index, key, value, is_dir, created, expiration_ns, _), prev, time_ns = event
    key = escape(key)
    parts: Parts = [b'{"action":"%b","node":' % _ACTION_BY_KIND[kind]]
    if kind in REMOVALS:
        parts.append(removed_object(key, event.change))
    else:
        node = Node(value, created, index, expiration_ns, int(is_dir))
        parts += node_parts(key, node, time_ns, offset_ns)
    if prev is not None:
        parts.append(b',"prevNode":')
        parts += node_parts(key, prev, time_ns, offset_ns)
    return joined([*parts, b"}\n"])


def removed_object(key: bytes, change: Change) -> bytes:
    """Return the node of a removal as JSON; `key` is escaped already."""
    return b'{"key":"%b"%b,"modifiedIndex":%d,"createdIndex":%d}' % (
        key,
        b',"dir":true' if change.dir else b"",
        change.index,
        change.created_index,
    )


def node_parts(key: bytes, node: Node, now_ns: int, offset_ns: int = 0) -> Parts:
    """Return a node, as `node_object` does, in parts: its value may be large."""
    value = node.value
    if value is None or len(value) <= LARGE_VALUE_BYTES:
        return [node_object(key, node, now_ns, offset_ns)]
    end = b'"' + file_end(node, now_ns, offset_ns)
    return [b'{"key":"%b","value":"' % key, LargeValue(node.modified_index, value), end]


def file_end(node: Node, now_ns: int, offset_ns: int = 0) -> bytes:
    """Return what follows the value in a file's JSON."""
    _, created, modified, expiration_ns, _ = node
    middle = expiration(expiration_ns, now_ns, offset_ns) if expiration_ns else b""
    return b'%b,"modifiedIndex":%d,"createdIndex":%d}' % (middle, modified, created)


def action_body(kind: int) -> bytes:
    """Return the body of a success without values (noValueOnSuccess)."""
    return _BODY_BY_KIND[kind]


def get_parts(key: bytes, node: Node, now_ns: int, offset_ns: int = 0) -> Parts:
    """Return the answer to a read of a file in parts; `key` is the raw path."""
    parts = node_parts(escape(key), node, now_ns, offset_ns)
    return joined([b'{"action":"get","node":', *parts, b"}\n"])


def error_body(error: ApiError) -> bytes:
    """Return an error as etcd writes it."""
    cause = b',"cause":"%b"' % escape(error.cause) if error.cause else b""
    place = b""
    if error.place is not None:
        name, number = error.place
        place = b',"%b":%d' % (name.encode(), number)
    return b'{"errorCode":%d,"message":"%b"%b,"index":%d%b}\n' % (
        error.code,
        TABLE[error.code].message.encode(),
        cause,
        error.index,
        place,
    )


# As `timestamp`: what a batch refreshes ends at one time, and so did what it was before.
@lru_cache(maxsize=64)
def expiration(expiration_ns: int, now_ns: int, offset_ns: int) -> bytes:
    """Return the fields of a node's JSON that show its expiration."""
    left_s = ttl_s(expiration_ns, now_ns)
    text = b',"expiration":"%b"' % timestamp(expiration_ns + offset_ns)
    return text + b',"ttl":%d' % left_s if left_s else text
