"""Named places where a fault can be made on purpose: a door for experiments with crashes.

Each store has its own `Faults`, so that one of several in a process fails alone. Nothing is armed
unless `arm` is called, and then a place costs the look at an empty dict; each is passed once a
batch or less often. What can be armed, as text:

    NAME=ACTION[:ARG][@NTH]

    crash            SIGKILL to this process: what it wrote stays in the page cache
    error[:ERRNO]    the call fails, by name or number of the error (EIO without one)
    delay:SECONDS    the call takes longer
    tear:BYTES       places that write: so many bytes are written, then as `crash`
    short:BYTES      places that write: so many bytes are written, then as a full disk

`@NTH` means only the NTH time, counted from 1; without it, every time. The same name may be armed
more than once.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from kvd.storage import disk

NAMES = {
    "startAfterLock": "start: the directory is locked, nothing has been read",
    "startAfterScan": "start: the whole log has been read, nothing has been changed",
    "startAfterMark": "start: the index is marked as in use; one that was rebuilt has its place",
    "startAfterReplay": "start: the log has been applied on the index, its torn tail is there",
    "tailBeforeCut": "start: before a torn tail is copied to the quarantine",
    "tailAfterCut": "start: the torn tail is gone",
    "startBeforeTerm": "start: before the new term is logged",
    "walBeforeWrite": "before a frame is written (can tear)",
    "walBeforeSync": "a frame is written, not synced",
    "walAfterSync": "a frame is durable, no client has a response to it",
    "segmentBeforeReserve": "before the space of a next segment is reserved",
    "segmentAfterReserve": "that space is reserved, the file has no header",
    "segmentAfterSeal": "a segment has its seal, but not its final length",
    "segmentAfterTrim": "a segment is sealed and cut to its length, the next one does not exist",
    "segmentBeforeHeader": "before the header of a next segment is written (can tear)",
    "segmentBeforeRename": "that header is durable, the file has no segment's name",
    "segmentAfterRename": "the next segment has its name, its directory is not synced",
    "segmentAfterInstall": "the next segment is durable and empty",
    "indexBeforeCommit": "a flush: what it writes is durable and visible, not in the index",
    "indexAfterCommit": "a flush: the index has it",
    "indexBeforeSync": "before the index is written out, now and then and at a clean stop",
    "snapshotBeforeCopy": "before the index is copied for a snapshot",
    "snapshotBeforeWrite": "the index is copied, the snapshot is not written",
    "snapshotBeforeRename": "a snapshot is written and verified, but has no name",
    "snapshotAfterRename": "a snapshot has its name, the old ones are still there",
    "purgeBeforeUnlink": "before a segment that is no longer needed is deleted",
    "purgeAfterUnlink": "it is deleted, its directory is not synced",
    "stopBeforeLog": "clean stop: every client has its response, before the log is closed",
    "stopBeforeIndex": "clean stop: the log is closed, the index is not synced",
    "stopBeforeMark": "clean stop: the index is synced, nothing vouches for it",
    "stopAfterMark": "clean stop: the index is vouched for, the directory is still locked",
}
"""Every place, with what is true there."""

_WRITES = frozenset({"walBeforeWrite", "segmentBeforeHeader"})
DEADLY = frozenset({"crash", "tear"})
"""The actions that kill the process."""
_ACTIONS = ("crash", "error", "delay", "tear", "short")


class Fault(NamedTuple):
    """An action at a failpoint.

    `argument` is an errno, seconds, or a number of bytes, as `action` has it; `nth` is 0 for every
    time.
    """

    name: str
    action: str
    argument: float
    nth: int


def parse(text: str) -> Fault:
    """Parse a text of the form above.

    Raises:
        ValueError: it cannot be followed; the message is one line.
    """
    name, equals, rest = text.partition("=")
    if name not in NAMES:
        raise ValueError(f"there is no failpoint {name!r}; there are {', '.join(NAMES)}")
    what, at, nth = rest.partition("@")
    action, colon, argument = what.partition(":")
    if not equals or action not in _ACTIONS:
        raise ValueError(f"{text!r}: expected {name}= and one of {', '.join(_ACTIONS)}")
    if at and not (nth.isascii() and nth.isdigit() and int(nth) > 0):
        raise ValueError(f"{text!r}: expected a number from 1 on after @")
    if action in ("tear", "short") and name not in _WRITES:
        raise ValueError(
            f"{text!r}: nothing is written there, only at {', '.join(sorted(_WRITES))}"
        )
    return Fault(name, action, _argument(text, action, argument, given=bool(colon)), int(nth or 0))


class Faults:
    """The faults of one store; they may be armed from any thread, at any time.

    Attributes:
        armed: The faults that are armed, by their places: one dict for ever, changed by `arm` only.
        free_bytes_max: What the store finds free on its disks, at most; None for what there is.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self.armed: dict[str, list[Fault]] = {}
        self.free_bytes_max: int | None = None
        self._passed: dict[str, int] = {}
        self._counting = threading.Lock()
        self.arm(faults)

    def arm(self, faults: Iterable[Fault]) -> None:
        """Make these faults happen, and no others; with none, this is off."""
        self.armed.clear()
        self._passed.clear()
        for fault in faults:
            self.armed.setdefault(fault.name, []).append(fault)

    def reach(self, name: str) -> None:
        """Be at a place: nothing happens unless a fault is armed there.

        Raises:
            OSError: by an armed `error`.
        """
        if self.armed:
            self._happen(name, None)

    def reach_write(self, name: str, fd: int, data: bytes, offset: int) -> None:
        """Be at a place where `data` is about to be written at `offset`.

        Raises:
            OSError: by an armed `error`; `PartialWrite` by an armed `short`.
        """
        if self.armed:
            self._happen(name, lambda length: disk.write_at(fd, data[:length], offset))

    def free_bytes(self, path: Path) -> int:
        """Return how many bytes the file system of a path has free for the store.

        Raises:
            OSError: it cannot say.
        """
        free = disk.free_bytes(path)
        return free if self.free_bytes_max is None else min(free, self.free_bytes_max)

    def _happen(self, name: str, write: Callable[[int], None] | None) -> None:
        assert name in NAMES
        with self._counting:
            passed = self._passed[name] = self._passed.get(name, 0) + 1
        for fault in self.armed.get(name, ()):
            if fault.nth in (0, passed):
                _do(fault, write)


NO_FAULTS = Faults()
"""Of what is opened outside of a store, by tools; nothing is ever armed here."""


def _argument(text: str, action: str, argument: str, *, given: bool) -> float:
    if action == "error":
        code = getattr(errno, argument or "EIO", None)
        if argument.isascii() and argument.isdigit():
            code = int(argument)
        if not isinstance(code, int) or code not in errno.errorcode:
            raise ValueError(f"{text!r}: expected an error such as EIO or ENOSPC")
        return code
    if action == "crash":
        if given:
            raise ValueError(f"{text!r}: a crash takes no argument")
        return 0
    try:
        value = float(argument) if action == "delay" else int(argument)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 31:
        unit = "seconds" if action == "delay" else "bytes"
        raise ValueError(f"{text!r}: expected a number of {unit} after {action}:")
    return value


def _do(fault: Fault, write: Callable[[int], None] | None) -> None:
    if fault.action == "delay":
        time.sleep(fault.argument)
        return
    if fault.action == "error":
        code = int(fault.argument)
        raise OSError(code, os.strerror(code))
    if write is not None and fault.action in ("tear", "short"):
        write(int(fault.argument))
    if fault.action == "short":
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise disk.PartialWrite(full, int(fault.argument))
    os.kill(os.getpid(), signal.SIGKILL)
