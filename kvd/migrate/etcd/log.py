"""The write-ahead log of an etcd: what its records say together.

    metadata {1: node, 2: cluster}                  entry    {1: type, 2: term, 3: index, 4: data}
    state    {1: term, 2: vote, 3: commit}          snapshot {1: index, 2: term, 3: members}

Records whose types are not under their checksum may be others than they seem: so terms and commits
never fall, entries leave no gap, none is of a later term than the last state, and none that was
acknowledged is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from kvd.migrate.errors import Damaged, TornTail
from kvd.migrate.etcd.protobuf import BYTES, VARINT, Malformed, data, decode, number
from kvd.migrate.etcd.segments import (
    CRC,
    ENTRY,
    METADATA,
    SNAPSHOT,
    STATE,
    Place,
    Record,
    Records,
    Segment,
    Tail,
)

_SHAPES = {
    METADATA: {1: VARINT, 2: VARINT},
    ENTRY: {1: VARINT, 2: VARINT, 3: VARINT, 4: BYTES},
    STATE: {1: VARINT, 2: VARINT, 3: VARINT},
    SNAPSHOT: {1: VARINT, 2: VARINT, 3: BYTES},
}


class Entry(NamedTuple):
    """An entry of the log, committed or not."""

    kind: int
    term: int
    number: int
    data: bytes
    place: Place


class Log:
    """The content of a log.

    Attributes:
        node_id, cluster_id: The member whose log it is; 0 if it does not say.
        entries: Its entries behind the snapshot, one index after the other.
        term, commit: The last state: the term, and the last index known to be committed.
        snapshots: Index and term of the snapshots that it knows.
        tail, is_full: As in `Records`.
    """

    def __init__(self, files: Sequence[Segment], start: int = 0, *, drop_tail: bool) -> None:
        """Read it.

        Args:
            files: its segments, from the one in which entry `start` + 1 is.
            start: the entry of the snapshot; those up to it are passed over.
            drop_tail: take a damaged last record for its end.

        Raises:
            Damaged: it is damaged.
        """
        self.node_id = self.cluster_id = 0
        self._start, self._last, self._last_term = start, 0, 0
        self.entries: list[Entry] = []
        self.term = self.commit = 0
        self.snapshots: set[tuple[int, int]] = set()
        self._metadata: bytes | None = None
        self._drop_tail = drop_tail
        takes = {
            METADATA: self._take_metadata,
            ENTRY: self._take_entry,
            STATE: self._take_state,
            SNAPSHOT: self._take_snapshot,
        }
        records = Records(files, drop_tail=drop_tail)
        last = None
        for last in records:
            if last.kind != CRC:
                try:
                    fields = decode(last.data, _SHAPES[last.kind], is_closed=True)
                except Malformed as error:
                    _refuse(last.place, f"a record of type {last.kind}: {error}")
                takes[last.kind](last, fields)
        self.tail, self.is_full = records.tail, records.is_full
        if files and self._metadata is None:
            raise Damaged.at(files[0].path, 0, "the log does not say whose it is")
        self._check_end(None if last is None else last.place)

    @property
    def last(self) -> int:
        """The index of the last entry, or of the last snapshot that it knows."""
        return max(self._last, *(index for index, _ in self.snapshots), 0)

    def _take_metadata(self, record: Record, fields: dict[int, int | bytes]) -> None:
        if self._metadata not in (None, record.data):
            _refuse(record.place, "another member than before")
        self._metadata = record.data
        self.node_id, self.cluster_id = number(fields, 1), number(fields, 2)

    def _take_entry(self, record: Record, fields: dict[int, int | bytes]) -> None:
        kind, term, index = number(fields, 1), number(fields, 2), number(fields, 3)
        entries = self.entries
        if kind > 2:
            _refuse(record.place, f"an entry of type {kind}")
        if index > self._start:
            expected = entries[-1].number + 1 if entries else self._start + 1
            if index > expected:
                _refuse(record.place, f"entry {index}, expected {expected}: some are missing")
            # A new leader overwrites what was never committed.
            del entries[index - self._start - 1 :]
        before = entries[-1].term if entries else 0
        if term < before or (index == self._last + 1 and term < self._last_term):
            _refuse(record.place, f"an entry of term {term}, expected {self._last_term} or more")
        self._last, self._last_term = index, term
        if index > self._start:
            entries.append(Entry(kind, term, index, data(fields, 4), record.place))

    def _take_state(self, record: Record, fields: dict[int, int | bytes]) -> None:
        term, commit = number(fields, 1), number(fields, 3)
        if term < self.term or commit < self.commit:
            _refuse(
                record.place,
                f"a state of term {term} and commit {commit} follows one of {self.term} "
                f"and {self.commit}",
            )
        self.term, self.commit = term, commit

    def _take_snapshot(self, _: Record, fields: dict[int, int | bytes]) -> None:
        self.snapshots.add((number(fields, 1), number(fields, 2)))

    def _check_end(self, last: Place | None) -> None:
        while self.entries and self.entries[-1].term > self.term:
            entry = self.entries[-1]
            problem = f"an entry of term {entry.term}, beyond the log's last, {self.term}"
            if entry.place != last:
                _refuse(entry.place, problem)
            if not self._drop_tail:
                raise TornTail.at(*entry.place, problem)
            self.tail = Tail(entry.place, problem)
            self.entries.pop()
            self._last = entry.number - 1
        if last is not None and self.commit > self.last:
            _refuse(
                last, f"the log ends with entry {self.last}, but {self.commit} were acknowledged"
            )


def _refuse(place: Place, problem: str) -> NoReturn:
    raise Damaged.at(*place, problem)
