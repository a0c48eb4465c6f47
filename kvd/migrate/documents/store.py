"""A document as the content of a store."""

from __future__ import annotations

from kvd.migrate import times
from kvd.migrate.content import Content
from kvd.migrate.documents.document import Document
from kvd.storage import disk
from kvd.storage.format.node import Node


def content_of(document: Document) -> Content:
    """Return a store of a document: each key has an index of its own, in their order."""
    now_ns = disk.wall_clock_ns()
    nodes: dict[bytes, Node] = {}
    index = 1
    for text, key in sorted(document.keys.items()):
        path = text.encode()
        index += 1
        above = path.rpartition(b"/")[0]
        missing = []
        while above and above not in nodes:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        for parent in reversed(missing):
            nodes[parent] = Node(None, index, index, 0, 1)
        end_ns = key.expiration_ns
        if key.ttl_s is not None:
            end_ns = now_ns + key.ttl_s * times.NS
        nodes[path] = Node(key.value, index, index, end_ns, int(key.value is None))
    return Content(nodes, index)
