"""`POST /v2/mget`: several keys at once, all as they were at one index.

    {"keys":["/a","/b"],"keysOnly":false}
    {"action":"mget","index":1301,"nodes":[{"key":"/a","value":"1","modifiedIndex":7,...},
     {"errorCode":100,"message":"Key not found","cause":"/b","index":1301}]}

In the order asked for; directories without their children. One key that may not be read refuses
them all.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from kvd.handlers.extras.reading.listing import NODES_PER_SLICE, taken
from kvd.handlers.extras.reading.nodes import node_slices, node_text
from kvd.handlers.keys.listing import Listing, Slices
from kvd.json_text import escape
from kvd.v2 import rules
from kvd.v2.errors import INVALID_FIELD, INVALID_FORM, ApiError
from kvd.v2.extras.parameters import AS_EVER, MGET_KEYS_MAX, TOO_MANY_KEYS, Shape
from kvd.v2.paths import clean_path
from kvd.v2.response import error_body

MGET = b"/v2/mget"
BODY_BYTES_MAX = 256 << 10
"""A thousand keys of 250 bytes."""

# What is longer counts as more nodes than one; so does a path of many components.
_BYTES_PER_NODE = 256
_COMPONENTS_PER_NODE = 4


class MultiGet(NamedTuple):
    """Keys of one request, cleaned, but with a slash at the end where there was one."""

    paths: tuple[bytes, ...]
    shape: Shape = AS_EVER


def read_body(body: bytes) -> MultiGet:
    """Return the keys of a body.

    Raises:
        ApiError: 210, it is no JSON object; 209, not what is wanted.
    """
    try:
        asked = json.loads(body.decode())
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise ApiError(INVALID_FORM, b"the body is no JSON object")
    for name in asked:
        if name not in ("keys", "keysOnly"):
            raise _wrong(name[:100], "there is no such field")
    keys, keys_only = asked.get("keys"), asked.get("keysOnly", False)
    if not isinstance(keys, list) or not keys:
        raise _wrong("keys", "a list of keys is wanted")
    if len(keys) > MGET_KEYS_MAX:
        raise _wrong("keys", f"there are {len(keys)}, {MGET_KEYS_MAX} are allowed", TOO_MANY_KEYS)
    if not isinstance(keys_only, bool):
        raise _wrong("keysOnly", "true or false is wanted")
    paths = tuple(_path(f"keys[{place}]", key) for place, key in enumerate(keys))
    return MultiGet(paths, Shape(keys_only=keys_only))


def _path(name: str, key: object) -> bytes:
    if not isinstance(key, str):
        raise _wrong(name, "a string is wanted")
    if not key.startswith("/"):
        raise _wrong(name, "a key begins with a slash")
    try:
        return clean_path(key.encode())
    except UnicodeEncodeError:
        raise _wrong(name, "text is wanted") from None


def _wrong(name: str, wanted: str, limit: str = "") -> ApiError:
    cause = f"{name}: {wanted}".encode("utf-8", "replace")
    return ApiError(INVALID_FIELD, cause, limit=limit)


def render(
    nodes: rules.Nodes, asked: MultiGet, *, index: int, now_ns: int, offset_ns: int
) -> Slices:
    """Yield the body of the answer in slices, and return the last one.

    Args:
        nodes: the state.
        asked: what is asked for.
        index: the etcd index of the state.
        now_ns: what a `ttl` counts from.
        offset_ns: what an `expiration` is later than the store's.
    """
    texts = [b'{"action":"mget","index":%d,"nodes":' % index]
    lead = b"["
    left = NODES_PER_SLICE
    for path in asked.paths:
        key = path.rstrip(b"/") or b"/"
        left -= 1 + key.count(b"/") // _COMPONENTS_PER_NODE
        if left <= 0:
            left = NODES_PER_SLICE
            yield [taken(texts)]
        texts.append(lead)
        lead = b","
        shown = escape(key)
        try:
            node = rules.existing(nodes, key, index)
        except ApiError as refusal:
            texts.append(error_body(refusal)[:-1])
            continue
        text = node_text(shown, node, asked.shape, now_ns, offset_ns)
        if text is not None:
            texts.append(text)
            left -= len(text) // _BYTES_PER_NODE
        else:
            yield [taken(texts)]
            yield from node_slices(shown, node, asked.shape, now_ns, offset_ns)
    texts.append(b"]}\n")
    return Listing([taken(texts)], None)
