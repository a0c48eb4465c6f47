"""Reading the snapshots that a start has not read, while the server runs.

A start that uses the index as it is reads no snapshot. Where the log before them was purged they
are all that the index, which is never synced, could be built from again: so whether they are there
and whole has to be found out while the index is good.

One that is not is set aside. As long as no other lies behind it, what was acknowledged may depend
on the index alone, so a snapshot has to be taken at once (kvd/core/housekeeping.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvd.storage.errors import CorruptSnapshot
from kvd.storage.snapshot import directory as snapshot

_KEPT_MIN = 2


class KeptSnapshots:
    """The snapshots of a store, read a slice at a time; they may be pruned meanwhile.

    Attributes:
        bad: what is wrong with those that cannot be used.
        good: how many were found whole, and connect to the log that is kept.
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
        """Look further for about so long; return whether there is more to look at.

        A call for the thread that takes snapshots. It takes the interpreter for as long, or for a
        chunk (1 MiB), so pause in between.
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
                pass  # pruned, or set aside by somebody else
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
        return f"set aside as {snapshot.set_aside(path, tell=False).name}"
    return "it could not be set aside"
