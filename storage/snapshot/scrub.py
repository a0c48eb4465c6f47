"""Background scrub of the snapshots that a start has not read.

A start that reuses the index reads no snapshot. Once the log before them is purged, the index,
which is never synced, can be rebuilt from the snapshots only, so damage to them must be found
while the index is still good.

A damaged snapshot is set aside. Until there is a good one, acknowledged data may depend on the
index alone, so that a new snapshot has to be taken at once (kvd/core/background/housekeeping.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvd.storage.errors import CorruptSnapshot
from kvd.storage.snapshot import directory as snapshot

_KEPT_MIN = 2


class SnapshotScrubber:
    """A scrub of a store's snapshots, in slices; they may be pruned meanwhile.

    Attributes:
        bad: a message for each that cannot be used.
        good: number of intact ones that connect to the log.
    """

    def __init__(self, directory: Path, log: Path, store_uuid: bytes) -> None:
        self.bad: list[str] = []
        self.good = 0
        self._directory = directory
        self._log = log
        self._store_uuid = store_uuid
        self._paths = snapshot.available(directory)
        self._covered: list[int] = []
        self._rest = self._read()

    def check(self, seconds: float) -> bool:
        """Read on for about so long; return whether there is more to read.

        Called on the thread that takes snapshots. It holds the interpreter that long, or for one
        chunk (1 MiB), so pause between calls.
        """
        until = time.monotonic() + seconds
        for _ in self._rest:
            if time.monotonic() >= until:
                return True
        self._conclude()
        return False

    def _read(self) -> Iterator[None]:
        for path in self._paths:
            try:
                header, chunks = snapshot.read_chunks(path)
                if header.store_uuid != self._store_uuid:
                    raise CorruptSnapshot(f"{path}: a snapshot of another store")  # noqa: TRY301
                for _ in chunks:
                    yield
            except CorruptSnapshot as error:
                self.bad.append(f"{error}; {_set_aside(path)}")
            except FileNotFoundError:
                pass  # pruned, or set aside by another process
            except OSError as error:
                self.bad.append(f"snap/{path.name}: {error.strerror}")
            else:
                self._covered.append(header.seq)

    def _conclude(self) -> None:
        first = min((int(path.name[17:33], 16) for path in self._log.glob("*.wal")), default=1)
        self.good = sum(seq >= first - 1 for seq in self._covered)
        if self.bad or first == 1:
            return
        if not self.good:
            self.bad.append(f"snap/: there is none, but the log begins with frame {first}")
        elif self.good < _KEPT_MIN and any(self._directory.glob("*.snap.broken")):
            self.bad.append("snap/: one was set aside, one is left")


def _set_aside(path: Path) -> str:
    with suppress(OSError):
        return f"set aside as {snapshot.set_aside(path, warns=False).name}"
    return "it could not be set aside"
