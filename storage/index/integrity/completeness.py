"""Proving that the tables of an index hold every row, each as it was written, and findable.

A row that is damaged fails its own checksum. That none is hidden, older than it should be, or there
twice is proved by the sums that `applied` keeps (format/sums.py), and for the events by their
indexes, which leave no gap. That each row is found, and not only met by a scan, is proved by
looking it up.

    prove_start    before anything is served from an index that is used again: the history, users,
                   roles, members, and what is to be freed; in a small store everything
    Scan           after that, in slices between transactions: nodes and expirations
    proved         what a snapshot is made of: all tables, as they are copied

A scan holds no transaction between its slices, because what others free meanwhile could not be used
again: it goes by the order of the keys, and what is written behind its back is accounted for.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from time import monotonic
from zlib import crc32

import lmdb

from kvd.storage.format.applied import Applied, decode_sums
from kvd.storage.format.event import event_key, with_prev
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import APPLIED_KEY, ONE, SUMMED, Scanned, Sums, id_sum, meta_sum
from kvd.storage.format.tables import TABLES, Find, Row
from kvd.storage.index.index_view import Table, Tables
from kvd.storage.index.integrity.event_rows import EventRows

_CRC = Struct("<I")
# So much is proved whole before anything is served: some ten milliseconds.
_ROWS_AT_START = 10_000
_BYTES_AT_START = 64 << 20
# The clock is read once in so many rows.
_ROWS_PER_LOOK = 16


def prove_start(env: lmdb.Environment, tables: Tables) -> bool:
    """Prove all tables but `nodes` and `ttl`; these, too, in a small store.

    Returns:
        Whether these, too.

    Raises:
        CorruptIndex, lmdb.Error: the index must not be used.
    """
    with env.begin(buffers=True) as txn:
        for table in tables.values():
            if any(flag for flag in table.flags().values()):
                raise CorruptIndex("a table of the index is of another kind")
        applied, sums = _state(txn.get(APPLIED_KEY, db=tables[b"meta"]))
        for name in (b"garbage", b"entries"):
            found, _ = _add_up(txn, name, tables[name])
            if name == b"entries":
                found += _meta_sum(txn, tables[b"meta"])
            _compare(name, found, sums[SUMMED.index(name)])
        _prove_events(txn, tables[b"events"], applied)
    if (sums[0] + sums[1]) // ONE > _ROWS_AT_START or _used_bytes(env) > _BYTES_AT_START:
        return False
    _prove_rest(env, tables, sums)
    return True


class Scan:
    """The proof of `nodes` and `ttl`, in slices, while others write.

    Attributes:
        scanned: How far it has come; transactions add to it what they change behind that.
        rows: How many rows it has found.
    """

    def __init__(self, env: lmdb.Environment, tables: Tables) -> None:
        self.scanned = Scanned()
        self.rows = 0
        self._env = env
        self._tables = tables
        self._is_at_ttl = False

    def go_on(self, sums: Sums, for_s: float) -> bool:
        """Look at rows for so many seconds; return whether all is proved now.

        No transaction may be open. A row is never divided: a large one takes what it takes.

        Args:
            sums: those of the committed state.
            for_s: 0 for some rows.

        Raises:
            CorruptIndex, lmdb.Error: nothing may be served from the index any more.
        """
        deadline = monotonic() + for_s
        with self._env.begin(buffers=True) as txn:
            if not self._is_at_ttl:
                return self._nodes(txn, sums[0], deadline)
            return self._expirations(txn, sums[1], deadline)

    def _nodes(self, txn: lmdb.Transaction[memoryview], expected: int, deadline: float) -> bool:
        scanned = self.scanned
        found, until = _add_up(
            txn, b"nodes", self._tables[b"nodes"], after=scanned.nodes_until, deadline=deadline
        )
        scanned.nodes += found
        scanned.nodes_until = until
        self.rows += found // ONE
        if not until:
            _compare(b"nodes", scanned.nodes, expected)
            self._is_at_ttl = True
        return False

    def _expirations(
        self, txn: lmdb.Transaction[memoryview], expected: int, deadline: float
    ) -> bool:
        scanned = self.scanned
        found, until = _add_up(
            txn, b"ttl", self._tables[b"ttl"], after=scanned.ttl_until, deadline=deadline
        )
        scanned.ttl += found
        scanned.ttl_until = until
        self.rows += found // ONE
        if until:
            return False
        _compare(b"ttl", scanned.ttl, expected)
        return True


def prove_all(env: lmdb.Environment, tables: Tables) -> None:
    """Prove every table of an index that is not written to.

    Raises:
        CorruptIndex, lmdb.Error: it is damaged.
    """
    if not prove_start(env, tables):
        with env.begin() as txn:
            _, sums = _state(txn.get(APPLIED_KEY, db=tables[b"meta"]))
        _prove_rest(env, tables, sums)


def _prove_rest(env: lmdb.Environment, tables: Tables, sums: Sums) -> None:
    scan = Scan(env, tables)
    while not scan.go_on(sums, float("inf")):
        pass


def _used_bytes(env: lmdb.Environment) -> int:
    pages: int = env.info()["last_pgno"] + 1
    return pages * env.stat()["psize"]


def proved(rows: Iterator[Row], find: Find) -> Iterator[Row]:
    """Pass on the rows of all tables, in order; at the end they have been proved complete.

    In a snapshot `applied` stands without the sums, which are those of an index, and each event
    holds what another version of the program may look for in it: it names no other.

    Raises:
        CorruptIndex: they are not.
    """
    sums = dict.fromkeys(SUMMED, 0)
    state = _state(find(TABLES.index(b"meta"), APPLIED_KEY))
    events = EventRows(state[0])

    def find_event(index: int) -> bytes | None:
        return find(TABLES.index(b"events"), event_key(index))

    for number, key, row in rows:
        name, passed_on = TABLES[number], row
        if name == b"meta":
            if key == APPLIED_KEY:
                passed_on = state[0].encode()
            sums[b"entries"] += meta_sum(key, row)
        elif name == b"events":
            _checked_sum(name, key, row)
            if not events.add(key, row):
                continue
            passed_on = with_prev(key, row, find_event)
        else:
            sums[name] += _checked_sum(name, key, row)
        yield number, key, passed_on
    for name, expected in zip(SUMMED, state[1], strict=True):
        _compare(name, sums[name], expected)
    events.compare()


def _state(row: bytes | memoryview | None) -> tuple[Applied, Sums]:
    data = None if row is None else bytes(row)
    applied = Applied.decode(data)
    sums = decode_sums(data or b"")
    if sums is None:
        raise CorruptIndex("it is of an older version, which kept no sums of its tables")
    return applied, sums


def _add_up(
    txn: lmdb.Transaction[memoryview],
    name: bytes,
    table: Table,
    *,
    after: bytes = b"",
    deadline: float = float("inf"),
) -> tuple[int, bytes]:
    """Return the sum of the rows behind a key, and the last key seen, empty at the table's end.

    Raises:
        CorruptIndex: a row is damaged, out of order, or not found by its key.
    """
    total = 0
    with txn.cursor(db=table) as cursor, txn.cursor(db=table) as lookup:
        if not (cursor.set_range(after) if after else cursor.first()):
            return 0, b""
        if after and bytes(cursor.key()) == after and not cursor.next():
            return 0, b""
        last = after
        for count, (view, row) in enumerate(cursor.iternext(), 1):
            key = bytes(view)
            if key <= last:
                raise CorruptIndex(f"the table {name.decode()} is out of order at {key.hex()}")
            if not lookup.set_key(key):
                raise CorruptIndex(f"the table {name.decode()} does not find its row {key.hex()}")
            total += _checked_sum(name, key, row)
            last = key
            if not count % _ROWS_PER_LOOK and monotonic() >= deadline:
                return total, last
    return total, b""


def _meta_sum(txn: lmdb.Transaction[memoryview], table: Table) -> int:
    total = 0
    with txn.cursor(db=table) as cursor, txn.cursor(db=table) as lookup:
        for key, row in cursor.iternext():
            if not lookup.set_key(bytes(key)):
                raise CorruptIndex(f"the table meta does not find its row {bytes(key).hex()}")
            total += meta_sum(bytes(key), bytes(row))
    return total


def _checked_sum(name: bytes, key: bytes, row: bytes | memoryview) -> int:
    """Return what a row counts.

    Raises:
        CorruptIndex: its checksum is wrong.
    """
    if name == b"garbage":
        if row:
            raise CorruptIndex("a row of the table garbage has a value")
        return id_sum(key)
    crc = crc32(row[4:], crc32(key))
    if len(row) < _CRC.size or _CRC.unpack_from(row)[0] != crc:
        raise CorruptIndex(f"the row {key.hex()} of the table {name.decode()} fails its checksum")
    return crc + ONE


def _compare(name: bytes, found: int, expected: int) -> None:
    if found != expected:
        raise CorruptIndex(
            f"the table {name.decode()} has {found // ONE} rows, expected {expected // ONE}"
            + (", but others" if found // ONE == expected // ONE else "")
        )


def _prove_events(txn: lmdb.Transaction[memoryview], table: Table, applied: Applied) -> None:
    events = EventRows(applied)
    with txn.cursor(db=table) as cursor, txn.cursor(db=table) as lookup:
        for view, row in cursor.iternext():
            key = bytes(view)
            if not lookup.set_key(key):
                raise CorruptIndex(f"the history does not find its event {key.hex()}")
            _checked_sum(b"events", key, row)
            events.add(key, row)
    events.compare()
