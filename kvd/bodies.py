"""Answers to plain reads of files, kept as long as the file is what it was.

Clients of a configuration store read the same keys again and again. Of a key that was read twice
lately the body is kept, together with the node that it was made from. Between two commits nothing
has to be looked up.

What expires is not kept: its `ttl` changes by itself.
"""

from __future__ import annotations

from kvd.response import get_body
from storage.applied import Applied
from storage.node import Node
from storage.store import Store

BODY_BYTES_MAX = 64 << 10
"""A larger value is read another way."""

_FILES_MAX = 4096
_KEPT_BYTES_MAX = 32 << 20
_READ_ONCE_BYTES_MAX = 4 << 20


class Bodies:
    """The files that are read again and again, of one store."""

    def __init__(self, store: Store) -> None:
        self._state = store.state
        self._files: dict[bytes, _File] = {}
        self._bytes = 0
        # A key is worth keeping when it is read a second time; few are, where keys are many.
        self._read_once: set[bytes] = set()
        self._read_once_bytes = 0

    def find(self, key: bytes) -> bytes | None:
        """Return the body that answers a read of a key, if that is a file that does not expire.

        Raises:
            CorruptIndex, lmdb.Error: the index is damaged.
        """
        applied = self._state.applied
        file = self._files.get(key)
        if file is not None and file.applied is applied:
            return file.body
        node = self._state.find(key)
        if node is None:
            return None
        if file is not None and file.node == node:
            file.applied = applied
            return file.body
        value = node.value
        if value is None or node.expiration_ns or len(value) > BODY_BYTES_MAX:
            return None
        body = get_body(key, node, 0)
        if file is not None:
            self._bytes += 2 * (len(body) - len(file.body))
            file.applied, file.node, file.body = applied, node, body
        elif key in self._read_once:
            self._keep(key, _File(applied, node, body))
        else:
            self._note(key)
        return body

    def _note(self, key: bytes) -> None:
        """Remember that a key was read."""
        full = self._read_once_bytes > _READ_ONCE_BYTES_MAX
        if full or len(self._read_once) >= _FILES_MAX:
            self._read_once.clear()
            self._read_once_bytes = 0
        self._read_once.add(key)
        self._read_once_bytes += len(key)

    def _keep(self, key: bytes, file: _File) -> None:
        size = len(key) + 2 * len(file.body)
        # All at once: which of them was read longest ago is not worth being known.
        if len(self._files) >= _FILES_MAX or self._bytes + size > _KEPT_BYTES_MAX:
            self._files.clear()
            self._bytes = 0
        self._files[key] = file
        self._bytes += size


class _File:
    """A body, the node that it was made from, and the state in which that was last the node."""

    __slots__ = ("applied", "body", "node")

    def __init__(self, applied: Applied, node: Node, body: bytes) -> None:
        self.applied = applied
        self.node = node
        self.body = body
