"""Outputs of log lines: for each a bounded queue, and a thread that writes it.

No request waits for a log line. A pipe that is full, a terminal that is held (Ctrl-S), a FIFO
without a reader, a disk that hangs or is full delays the thread of that output alone:

    put() -> queue, 1 MiB -> thread -> write(2), at most 4 KiB each

Invariants: lines are written in the order of `put`. A line without room in the queue is dropped and
counted, and so is every later one of its kind until half of the queue is free. The next line that
is written follows a notice of the number of missing lines; the same holds for lines that the system
refused (no space).
A flush waits for the queue while the output makes progress, for one to five seconds, so the last
lines of a server whose log is read are always written.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from kvd.lines import printable

QUEUE_BYTES_MAX = 1 << 20
"""Upper bound of the bytes queued for one output."""

# The last quarter is for lines that no client causes at will: the access log cannot displace them.
_ROUTINE_BYTES_MAX = QUEUE_BYTES_MAX * 3 // 4
# Memory of a queued line in addition to its text.
_LINE_OVERHEAD_BYTES = 120
# A pipe takes this much whole or not at all (PIPE_BUF), so that lines of other processes that share
# it do not end up within ours; and a slow reader is seen to make progress.
_WRITE_BYTES_MAX = 4096
# A line after a quiet time is written at once, of many those of so long together: to wake the
# thread for each line of an access log cost a third of a request (measured).
_PAUSE_S = 0.002
_FLUSH_IDLE_S = 1.0
_FLUSH_STUCK_S = 0.2
_FLUSH_S = 5.0
_OPEN_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY


class Output:
    """A descriptor that lines are written to; a file is opened again after it was renamed."""

    def __init__(self, name: str, fd: int | None, *, is_file: bool) -> None:
        self.name = name
        self._fd = fd
        self._is_file = is_file
        self._is_cut = False

    @classmethod
    def open(cls, path: str) -> Output:
        """Return an output that appends to a file, which is made if it is missing.

        A FIFO without a reader is opened later, when there is one.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            fd = os.open(path, _OPEN_FLAGS | os.O_NONBLOCK, 0o600)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116
                raise
            return cls(path, None, is_file=True)
        os.set_blocking(fd, True)
        return cls(path, fd, is_file=True)

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        """Write all, without a time limit; return the bytes written, and an error that ended it."""
        rest = memoryview(data)
        try:
            fd = self._current()
            if self._is_cut:
                os.write(fd, b"\n")
                self._is_cut = False
            while rest:
                try:
                    rest = rest[os.write(fd, rest[:_WRITE_BYTES_MAX]) :]
                except BlockingIOError:  # another process has set the flag on the file they share
                    waiting = select.poll()
                    waiting.register(fd, select.POLLOUT)
                    waiting.poll()
        except OSError as error:
            written = len(data) - len(rest)
            self._is_cut = self._is_cut or (written > 0 and data[written - 1] != ord("\n"))
            self._abandon()
            return written, error
        return len(data), None

    def _current(self) -> int:
        """Return the descriptor of the file that has the name now."""
        if self._fd is not None and self._is_file and self._is_renamed(self._fd):
            # Where the new file cannot be made, the old one still has the lines.
            with suppress(OSError):
                renewed = os.open(self.name, _OPEN_FLAGS, 0o600)
                os.close(self._fd)
                self._fd, self._is_cut = renewed, False
        if self._fd is None:
            self._fd = os.open(self.name, _OPEN_FLAGS, 0o600)
        return self._fd

    def _is_renamed(self, fd: int) -> bool:
        try:
            named, opened = os.stat(self.name), os.fstat(fd)  # noqa: PTH116
        except OSError:
            return True
        return (named.st_dev, named.st_ino) != (opened.st_dev, opened.st_ino)

    def _abandon(self) -> None:
        """Open a file again at the next line: the reader of a FIFO has left, a disk was full."""
        if self._is_file and self._fd is not None:
            with suppress(OSError):
                os.close(self._fd)
            self._fd = None


class _Item(NamedTuple):
    """A line in the queue; `missing` lines were dropped before it, and it says so."""

    data: bytes
    missing: int = 0


class LineWriter:
    """Writes lines to one output, on a thread.

    Attributes:
        dropped: number of lines that were not written.
    """

    def __init__(self, output: Output, notice: Callable[[int, str], bytes]) -> None:
        """Begin to write.

        Args:
            output: the output.
            notice: makes the line with the number of missing lines and the reason.
        """
        self.dropped = 0
        self._output = output
        self._notice = notice
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._queued_bytes = 0  # with what is being written
        self._dropping: set[bool] = set()  # routine lines (True), the others (False)
        self._missing = 0
        self._reason = ""
        self._can_write = True
        self._progress_s = time.monotonic()
        threading.Thread(target=self._run, name="kvd-log", daemon=True).start()

    @property
    def name(self) -> str:
        """The name of the output."""
        return printable(self._output.name)

    def put(self, line: bytes, *, is_routine: bool = False) -> None:
        """Queue a line, with its newline, if there is room; routine lines leave a reserve."""
        with self._changed:
            room_bytes = _ROUTINE_BYTES_MAX if is_routine else QUEUE_BYTES_MAX
            if is_routine in self._dropping:
                room_bytes = QUEUE_BYTES_MAX // 2
            if self._queued_bytes + len(line) + _LINE_OVERHEAD_BYTES > room_bytes:
                self._dropping.add(is_routine)
                self._drop(1, "nothing takes them")
                return
            self._dropping.discard(is_routine)
            if not self._queued_bytes:
                self._progress_s = time.monotonic()
            if self._missing:
                self._queue_notice()
            self._append(_Item(line))
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written, while the output makes progress."""
        began_s = time.monotonic()
        with self._changed:
            while self._queued_bytes or self._is_notice_due():
                self._changed.notify_all()
                now_s = time.monotonic()
                idle_end_s = max(self._progress_s + _FLUSH_IDLE_S, began_s + _FLUSH_STUCK_S)
                left_s = min(idle_end_s, began_s + _FLUSH_S) - now_s
                if left_s <= 0:
                    return
                self._changed.wait(left_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._is_notice_due():
                    self._changed.wait()
                if not self._queue:
                    self._queue_notice()
                items = self._take()
            written, error = self._output.write(b"".join(item.data for item in items))
            with self._changed:
                self._written(items, written, error)
                self._changed.notify_all()
            if self._queued_bytes < _WRITE_BYTES_MAX:
                time.sleep(_PAUSE_S)

    def _append(self, item: _Item) -> None:
        self._queue.append(item)
        self._queued_bytes += len(item.data) + _LINE_OVERHEAD_BYTES

    def _take(self) -> list[_Item]:
        """Take the lines for one call of write from the queue, or one long line."""
        items = [self._queue.popleft()]
        size = len(items[0].data)
        while self._queue and size + len(self._queue[0].data) <= _WRITE_BYTES_MAX:
            items.append(self._queue.popleft())
            size += len(items[-1].data)
        return items

    def _written(self, items: list[_Item], written: int, error: OSError | None) -> None:
        end = 0
        for item in items:
            end += len(item.data)
            self._queued_bytes -= len(item.data) + _LINE_OVERHEAD_BYTES
            if end > written and error is not None:
                self._drop(0 if item.missing else 1, error.strerror or str(error))
                self._missing += item.missing
        if written:
            self._progress_s = time.monotonic()
        self._can_write = error is None

    def _is_notice_due(self) -> bool:
        """Return whether lines are missing and only the notice of them is left to write.

        After a failed call, the notice waits for the next line, so that it is not retried for ever.
        """
        return self._missing > 0 and not self._queued_bytes and self._can_write

    def _queue_notice(self) -> None:
        missing, self._missing = self._missing, 0
        self._append(_Item(self._notice(missing, self._reason), missing))

    def _drop(self, count: int, reason: str) -> None:
        self.dropped += count
        self._missing += count
        self._reason = reason
