"""The crash file: a fatal signal is recorded in it for the next start.

A damaged page of the index may end the process inside LMDB (SIGABRT, SIGBUS, SIGSEGV). Python's
faulthandler then writes the signal and the stack of each thread to a file in the directory of the
index. If it exists, the next start rebuilds the index (storage/index/reuse.py). SIGKILL leaves no
record.
"""

from __future__ import annotations

import faulthandler
import logging
import os
from pathlib import Path

from kvd.storage import disk
from kvd.storage.index.reuse import CRASH

log = logging.getLogger(__name__)


class CrashFile:
    """The file to which a fatal signal is written; one in each process."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def watch(self, index: Path) -> None:
        """Record fatal signals in the directory of an index from now on; old records stay.

        If the file cannot be made (a full disk), the process goes on without one.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(index / CRASH, flags, disk.FILE_MODE)
        except OSError as error:
            log.warning("a crash cannot be written down for the next start: %s", error)
            return
        faulthandler.enable(file=fd)
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd
