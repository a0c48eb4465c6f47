"""Nodes as JSON in the shapes that extras of reads ask for.

As in an ordinary answer, but for the value of a file:

    keysOnly       left out
    base64         "value":"aGk=","encoding":"base64"
    maxValue=N     "value":"hel","size":5     at most N bytes, whole characters; behind the encoding
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import TypeVar

from kvd.json_text import LARGE_VALUE_BYTES, LargeValue, Parts, cut, escape
from kvd.storage.format.node import Node
from kvd.v2.extras.parameters import AS_EVER, Shape
from kvd.v2.response import file_end, node_object, node_parts

_Made = TypeVar("_Made")

# Bytes of a value that are escaped, or encoded, at once. The latter is far faster, and its pieces
# fit together after a multiple of three bytes.
_ESCAPED_BYTES = 16 << 10
_ENCODED_BYTES = 3 << 16


def node_text(key: bytes, node: Node, shape: Shape, now_ns: int, offset_ns: int) -> bytes | None:
    """Return a node without children as JSON, or None if its value is too large for that.

    Args:
        key: escaped already.
        node: the node.
        shape: how its value is shown.
        now_ns: what a `ttl` counts from.
        offset_ns: what an `expiration` is later than the store's.
    """
    value = node.value
    if value is None:
        return node_object(key, node, now_ns, offset_ns)
    if shape == AS_EVER:
        if len(value) > LARGE_VALUE_BYTES:
            return None
        return node_object(key, node, now_ns, offset_ns)
    end = file_end(node, now_ns, offset_ns)
    if shape.keys_only:
        return b'{"key":"%b"%b' % (key, end)
    shown, more = _shown(value, shape)
    if len(shown) > _ESCAPED_BYTES:
        return None
    return b'{"key":"%b","value":"%b%b%b' % (key, _text(shown, shape), more, end)


def shown_parts(
    key: bytes,
    node: Node,
    shape: Shape,
    *,
    now_ns: int,
    offset_ns: int,
    make: Callable[[bytes], _Made],
) -> list[bytes | LargeValue | _Made]:
    """Return a node as `node_text` does, in parts; `make` makes one that is escaped later."""
    text = node_text(key, node, shape, now_ns, offset_ns)
    if text is not None:
        return [text]
    if shape == AS_EVER:
        return [*node_parts(key, node, now_ns, offset_ns)]
    assert node.value is not None
    shown, more = _shown(node.value, shape)
    value = b64encode(shown) if shape.base64 else make(shown)
    end = b"%b%b" % (more, file_end(node, now_ns, offset_ns))
    return [b'{"key":"%b","value":"' % key, value, end]


def node_slices(
    key: bytes, node: Node, shape: Shape, now_ns: int, offset_ns: int
) -> Iterator[Parts]:
    """Yield a file as JSON in slices, as `node_text` would return it."""
    value = node.value
    assert value is not None
    if shape == AS_EVER:
        yield node_parts(key, node, now_ns, offset_ns)
        return
    shown, more = _shown(value, shape)
    yield [b'{"key":"%b","value":"' % key]
    start = 0
    while start < len(shown):
        end = start + _ENCODED_BYTES if shape.base64 else cut(shown, start + _ESCAPED_BYTES)
        yield [_text(shown[start:end], shape)]
        start = end
    yield [b"%b%b" % (more, file_end(node, now_ns, offset_ns))]


def _shown(value: bytes, shape: Shape) -> tuple[bytes, bytes]:
    """Return the shown part of a value, and what follows it: the quote, further fields."""
    more = b'"'
    if shape.base64:
        more += b',"encoding":"base64"'
    if shape.max_value is None:
        return value, more
    more += b',"size":%d' % len(value)
    return value[: cut(value, shape.max_value)], more


def _text(value: bytes, shape: Shape) -> bytes:
    return b64encode(value) if shape.base64 else escape(value)
