"""Background scrub of the log that recovery did not read.

A start that reuses the index, or loads a snapshot, reads the log from there on only. What is kept
before that is still of use: for a rebuild from an older snapshot, and to restore a point in time.
So damage to it has to be found while there is a second copy: the index.

Damage here is no reason to stop, because nothing of it is served: every row of the index has a
checksum of its own. But as long as no snapshot lies behind it, what was acknowledged depends on the
index alone, which is never synced. So a snapshot has to be taken at once
(kvd/core/background/housekeeping.py); the damaged segment goes when the older of two snapshots
covers it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from kvd.storage.errors import CorruptLog
from kvd.storage.format.frame import Position
from kvd.storage.format.payload import decode_payload
from kvd.storage.format.records import Change, UnknownRecord
from kvd.storage.wal.segments import Frame, Scan, list_segments

# Each of them sees what a purge has left, which is less every time.
_ATTEMPTS = 100


class LogScrubber:
    """The log before a position, read a slice at a time; it may be purged meanwhile.

    Attributes:
        frames: how many have been found good.
    """

    def __init__(self, directory: Path, store_uuid: bytes, end: Position) -> None:
        self.frames = 0
        self._directory = directory
        self._store_uuid = store_uuid
        self._end = end
        self._last: Frame | None = None
        self._rest = self._read()

    def check(self, seconds: float) -> bool:
        """Look further for about so long; return whether there is more to look at.

        A call for a thread of its own. It takes the interpreter for as long, so pause in between.

        Raises:
            CorruptLog: what comes next is damaged.
            OSError: it cannot be read.
        """
        until = time.monotonic() + seconds
        for frame in self._rest:
            self.frames += 1
            self._last = frame
            if time.monotonic() >= until:
                return True
        return False

    @property
    def last_index(self) -> int:
        """The last etcd index that has been found good, 1 where there is none."""
        if self._last is None:
            return 1
        try:
            records = decode_payload(self._last.payload).records
        except UnknownRecord:
            records = []
        indexes = [record.index for record in records if isinstance(record, Change)]
        return indexes[-1] if indexes else self._last.first_index - 1

    def _read(self) -> Iterator[Frame]:
        for attempt in range(_ATTEMPTS):
            try:
                yield from self._read_on()
            except FileNotFoundError:
                # Purged meanwhile: what is left is looked at from its beginning.
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    def _read_on(self) -> Iterator[Frame]:
        end = self._end
        segments = list_segments(self._directory, self._store_uuid)
        before = [segment for segment in segments if segment.number <= end.segment]
        for frame in Scan(self._directory, before, None).frames(must_reach=end.seq):
            if frame.seq == end.seq and frame.end != end:
                raise CorruptLog.at(
                    before[-1].path,
                    frame.end.offset,
                    f"frame {end.seq} ends here, expected {end.offset} of segment {end.segment}",
                )
            if frame.seq >= end.seq:
                return
            yield frame
