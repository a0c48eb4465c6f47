"""Writing to the index, in one LMDB transaction, what a state holds beyond it.

What is written is what the rows are now: of a node that was changed ten times only the last. Old
rows are looked at for the sums of the tables (format/sums.py) and for the expirations that go with
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from kvd.storage.format.applied import HISTORY_BYTES_MAX_KEY, Applied, encode_history_bytes_max
from kvd.storage.format.document import document_key, encode_document
from kvd.storage.format.expiration import expiration_key, expiration_row
from kvd.storage.format.node import (
    HEADER,
    Node,
    decode_node,
    id_prefix,
    seal_node,
)
from kvd.storage.format.records import Document
from kvd.storage.format.sums import APPLIED_KEY, ONE, Scanned, Sums, id_sum, meta_sum, row_sum
from kvd.storage.index.history import HistoryWriter
from kvd.storage.index.index_view import Row, Tables, Transaction

# A row that is longer is written before the next one is made.
_LARGE = 64 << 10

# What is read at once to be expired or freed, in bytes of values, beside a last one.
READ_BYTES_MAX = 4 << 20

_unpack_row = HEADER.unpack_from
# Where the sum of a row stands, and the time of the node in it, in what that returns.
_CRC, _EXPIRATION = 0, 4


class Flush:
    """One LMDB transaction that brings the index up to date; the caller commits it.

    Attributes:
        nodes_behind: What it changed of the sum of nodes that a scan has passed.
        ttl_behind: As above, of expirations.
        history: Writes the events.
    """

    def __init__(self, txn: Transaction, tables: Tables, sums: Sums, scanned: Scanned) -> None:
        """Begin it.

        Args:
            txn: a write transaction, whose values may be memoryviews.
            tables: those of the index.
            sums: the sums of the tables before it.
            scanned: how far a scan of the index has come.
        """
        self._txn = txn
        self._tables = tables
        self._nodes_sum, self._ttl_sum, self._garbage_sum, self._documents_sum = sums
        self._nodes_until, self._ttl_until = scanned.nodes_until, scanned.ttl_until
        self.nodes_behind = self.ttl_behind = 0
        self.history = HistoryWriter(txn, tables[b"events"])

    @property
    def sums(self) -> Sums:
        """The sums of the tables."""
        return self._nodes_sum, self._ttl_sum, self._garbage_sum, self._documents_sum

    def write_nodes(
        self,
        nodes: Mapping[bytes, Node | None],
        dirty: Iterable[bytes],
        paths: Mapping[bytes, bytes],
    ) -> None:
        """Write the rows of those nodes that are dirty, and of their expirations.

        A removed node is None. `paths` has those of nodes that expire or have long names.
        """
        table = self._tables[b"nodes"]
        keys = sorted(dirty)
        rows: list[Row] = []
        gone: list[bytes] = []
        with self._txn.cursor(table) as cursor:
            # Of a value, which may be large, only the head is looked at.
            before = {bytes(key): _unpack_row(row) for key, row in cursor.getmulti(keys)}
            for key in keys:
                node, old = nodes[key], before.get(key)
                changed = ended = expires = 0
                if old is not None:
                    changed, ended = -ONE - old[_CRC], old[_EXPIRATION]
                if node is not None:
                    expires = node[3]
                    name = key[9:] if not key[8] else paths[key].rpartition(b"/")[2]
                    crc, row = seal_node(key, name, node)
                    rows.append((key, row))
                    changed += ONE + crc
                    if len(row) > _LARGE:
                        # Not all of them at once: together they may be large.
                        cursor.putmulti(rows)
                        rows.clear()
                elif old is not None:
                    gone.append(key)
                self._count_node(key, changed)
                if ended != expires:
                    self._change_expiration(key, ended, expires, paths)
            cursor.putmulti(rows)
        for key in gone:
            self._txn.delete(key, db=table)

    def _count_node(self, key: bytes, changed: int) -> None:
        self._nodes_sum += changed
        if key <= self._nodes_until:
            self.nodes_behind += changed

    def _change_expiration(
        self, key: bytes, ended: int, expires: int, paths: Mapping[bytes, bytes]
    ) -> None:
        if ended:
            self.delete_expiration(expiration_key(ended, key))
        if expires:
            self._put_expiration(expiration_key(expires, key), paths[key])

    def _put_expiration(self, row_key: bytes, path: bytes) -> None:
        crc, row = expiration_row(row_key, path)
        self._txn.put(row_key, row, db=self._tables[b"ttl"])
        self._count_expiration(row_key, ONE + crc)

    def delete_expiration(self, row_key: bytes) -> None:
        """Delete a row of `ttl`, if it is there."""
        row = self._txn.pop(row_key, db=self._tables[b"ttl"])
        if row is not None:
            self._count_expiration(row_key, -row_sum(row))

    def _count_expiration(self, row_key: bytes, changed: int) -> None:
        self._ttl_sum += changed
        if row_key <= self._ttl_until:
            self.ttl_behind += changed

    def drop(self, dir_ids: Iterable[int]) -> None:
        """Note that directories were removed, so that what hangs below them is freed one day."""
        for dir_id in dir_ids:
            prefix = id_prefix(dir_id)
            self._txn.put(prefix, b"", db=self._tables[b"garbage"])
            self._garbage_sum += id_sum(prefix)

    def free(self, limit: int) -> bool:
        """Free up to `limit` nodes below removed directories, fewer where they are large.

        Returns whether some may be left.
        """
        garbage = self._tables[b"garbage"]
        while limit > 0:
            with self._txn.cursor(db=garbage) as cursor:
                if not cursor.first():
                    return False
                prefix = bytes(cursor.key())
            rows = list(_some(self._below(prefix), limit))
            for key, data in rows:
                self._free_node(key, data)
            if next(self._below(prefix), None) is None:
                self._txn.delete(prefix, db=garbage)
                self._garbage_sum -= id_sum(prefix)
            elif len(rows) < limit:
                return True
            limit -= len(rows) + 1
        return True

    def _free_node(self, key: bytes, data: bytes) -> None:
        node = decode_node(key, data)
        self._txn.delete(key, db=self._tables[b"nodes"])
        self._count_node(key, -row_sum(data))
        if node.expiration_ns:
            self.delete_expiration(expiration_key(node.expiration_ns, key))
        if node.dir_id:
            self.drop((node.dir_id,))

    def _below(self, prefix: bytes) -> Iterator[Row]:
        with self._txn.cursor(db=self._tables[b"nodes"]) as cursor:
            if cursor.set_range(prefix):
                for key, data in cursor.iternext():
                    if key[:8] != prefix:
                        return
                    yield bytes(key), bytes(data)

    def write_documents(self, documents: Iterable[Document]) -> None:
        """Write documents."""
        table = self._tables[b"entries"]
        for document in documents:
            key = document_key(document.what, document.name)
            before = self._txn.pop(key, db=table)
            if before is not None:
                self._documents_sum -= row_sum(before)
            if document.content is not None:
                row = encode_document(key, document)
                self._txn.put(key, row, db=table)
                self._documents_sum += row_sum(row)

    def set_history_bytes_max(self, bytes_max: int) -> None:
        """Write how long the rows of the history may be together."""
        key, row, table = (
            HISTORY_BYTES_MAX_KEY,
            encode_history_bytes_max(bytes_max),
            self._tables[b"meta"],
        )
        before = self._txn.pop(key, db=table)
        self._txn.put(key, row, db=table)
        self._documents_sum += meta_sum(key, row)
        if before is not None:
            self._documents_sum -= meta_sum(key, bytes(before))

    def finish(self, applied: Applied) -> None:
        """Say how far the log has been applied, with all that was written before."""
        row = applied.encode_with(self.sums)
        self._txn.put(APPLIED_KEY, row, db=self._tables[b"meta"])


def _some(rows: Iterator[Row], limit: int) -> Iterator[Row]:
    """Yield up to `limit` rows, and none behind so many bytes that they take."""
    size = 0
    for row in islice(rows, limit):
        yield row
        size += len(row[1])
        if size > READ_BYTES_MAX:
            return
