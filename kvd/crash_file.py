"""What ends the process without another word: a fatal signal, written down for the next start.

A damaged page of the index may end the process inside LMDB (SIGABRT, SIGBUS, SIGSEGV). Python's
faulthandler then writes the signal, and where each thread was, to a file beside the index; by it
the next start knows that it must build the index again (storage/index/reuse.py). SIGKILL
writes nothing.
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
    """The file beside the index to which a fatal signal is written; one in each process."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def watch(self, index: Path) -> None:
        """Have a fatal signal written beside an index from now on; what stands there stays.

        Where no file can be made (a full disk) all goes on without one.
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
