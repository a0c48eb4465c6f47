"""The same bytes to many sockets by one system call: Linux AIO, which takes writes to sockets too.

An event that ten thousand watch is ten thousand calls of write(2), and these are four fifths of
what it costs. By io_submit(2), which makes up to 256 of them at once, they cost a quarter less: 7.0
instead of 9.0 us of the kernel's time each, and no other process gets the processor in between
(10,000 sockets, 250 bytes, measured).

A write to a socket that does not block is complete when io_submit returns, whether it was taken
whole, in part or not at all.

Nearly all of that is the kernel's time, for which two threads need not share the interpreter: where
there are two processors, `SocketPair` has a second thread do a part of the calls. The caller waits
for it, so what is sent before and after is in order, and nothing is closed meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import os
from array import array
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from kvd.storage.aio import EVENT_I64, IOCB, RESULT_I64, open_queue

SOCKETS_MAX = 256
"""So many at once: two milliseconds."""
# So many go to one thread at a time; for fewer than two pieces the second is not worth its waking.
_PIECE = 64

_IOCB_CMD_PWRITE = 1
# Places in an iocb (`kvd.storage.aio.IOCB`) and in an event, in numbers of eight or four bytes.
_FILE_U32, _IOCB_U32 = 5, IOCB.size // 4
_BUFFER_U64, _LENGTH_U64, _IOCB_U64 = 3, 4, IOCB.size // 8
_DATA_I64 = 0


class SocketBatch:
    """Writes to many sockets at once. They must be ones that do not block."""

    def __init__(self, *, releases: bool = False) -> None:
        """Set up a queue.

        Args:
            releases: Let another thread have the interpreter meanwhile.

        Raises:
            OSError: it cannot be had here.
        """
        self._queue = open_queue(SOCKETS_MAX, releases=releases)
        self._calls, self._syscall, self._context = self._queue
        iocbs = bytearray(IOCB.size * SOCKETS_MAX)
        for place in range(SOCKETS_MAX):
            IOCB.pack_into(
                iocbs,
                place * IOCB.size,
                *(place, 0, 0, _IOCB_CMD_PWRITE, 0, 0),
                *(0, 0, 0, 0, 0, 0),
            )
        self._u32 = memoryview(iocbs).cast("I")
        self._u64 = memoryview(iocbs).cast("Q")
        begin = ctypes.addressof(ctypes.c_char.from_buffer(iocbs))
        addresses = range(begin, begin + len(iocbs), IOCB.size)
        self._iocbs = (ctypes.c_void_p * SOCKETS_MAX)(*addresses)
        events = bytearray(8 * EVENT_I64 * SOCKETS_MAX)
        self._events = memoryview(events).cast("q")
        self._events_at = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(events)))
        self._data = b""

    def send(self, data: bytes, files: Sequence[int]) -> list[tuple[int, int]]:
        """Write data to up to `SOCKETS_MAX` sockets.

        Returns:
            Those that did not take all of it: the place in `files`, and how many bytes it took,
            which is 0 where it failed.

        Raises:
            OSError: it cannot be known what was sent; nothing may be sent by this any more.
        """
        count = len(files)
        self._u32[_FILE_U32 : _IOCB_U32 * count : _IOCB_U32] = array("I", files)
        if data is not self._data:
            self._take(data)
        submit = ctypes.c_long(self._calls.submit)
        # It stops at one that it does not take; those behind it have not been tried.
        tried = max(0, self._syscall(submit, self._context, ctypes.c_long(count), self._iocbs))
        self._await(tried)
        results = self._events[RESULT_I64 : EVENT_I64 * tried : EVENT_I64].tolist()
        if results.count(len(data)) == count:
            return []
        return self._partly(data, count, results)

    def close(self) -> None:
        """Release the queue."""
        self._queue.close()

    def _await(self, tried: int) -> None:
        """Read the outcomes of all that was tried: they are there already."""
        number = ctypes.c_long(tried)
        getevents = ctypes.c_long(self._calls.getevents)
        if tried and tried != self._syscall(
            getevents, self._context, number, number, self._events_at, None
        ):
            raise OSError(errno.EIO, "io_getevents does not tell of writes that are complete")

    def _take(self, data: bytes) -> None:
        # It stays where it is for as long as it is referred to.
        self._data = data
        address = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0
        for place, value in ((_BUFFER_U64, address), (_LENGTH_U64, len(data))):
            self._u64[place::_IOCB_U64] = array("Q", [value]) * SOCKETS_MAX

    def _partly(self, data: bytes, count: int, results: list[int]) -> list[tuple[int, int]]:
        places = self._events[_DATA_I64 : EVENT_I64 * len(results) : EVENT_I64].tolist()
        taken = dict(zip(places, results, strict=True))
        sent = [(place, max(0, taken.get(place, 0))) for place in range(count)]
        return [(place, bytes_) for place, bytes_ in sent if bytes_ < len(data)]


class _Job:
    """Sockets that two threads send to.

    Attributes:
        pieces: Where those begin that neither has taken yet.
        unsent: As `SocketBatch.send`, with places among all of them.
        error: What a thread met.
    """

    __slots__ = ("data", "error", "files", "pieces", "unsent")

    def __init__(self, data: bytes, files: Sequence[int]) -> None:
        self.data = data
        self.files = files
        self.pieces = deque(range(0, len(files), _PIECE))
        self.unsent: list[tuple[int, int]] = []
        self.error: BaseException | None = None

    def send_piece(self, batch: SocketBatch) -> bool:
        """Send to one piece; return whether there was one."""
        try:
            first = self.pieces.popleft()
        except IndexError:
            return False
        try:
            unsent = batch.send(self.data, self.files[first : first + _PIECE])
            self.unsent += [(first + place, size) for place, size in unsent]
        except BaseException as error:  # noqa: BLE001 -- raised where all is waited for
            self.error = error
        return True


class SocketPair:
    """Writes to many sockets at once, as `SocketBatch` does, from two threads."""

    def __init__(self) -> None:
        """Set up the queues, and begin the second thread where it has a processor.

        Raises:
            OSError: they cannot be had here.
        """
        self._few = SocketBatch()
        self._many: list[SocketBatch] = []
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._sent: SimpleQueue[None] = SimpleQueue()
        """One for each piece that the second thread has sent."""
        self._second: Thread | None = None
        if len(os.sched_getaffinity(0)) > 1:
            # Where the system has no more queues or threads the caller sends alone.
            with suppress(OSError, RuntimeError):
                for _ in range(2):
                    self._many.append(SocketBatch(releases=True))
                second = Thread(target=self._work, name="kvd-tell", daemon=True)
                second.start()
                self._second = second

    def send(self, data: bytes, files: Sequence[int]) -> list[tuple[int, int]]:
        """Write data to up to `SOCKETS_MAX` sockets; see `SocketBatch.send`."""
        if self._second is None or len(files) < 2 * _PIECE:
            return self._few.send(data, files)
        job = _Job(data, files)
        left = len(job.pieces)
        self._jobs.put(job)
        while job.send_piece(self._many[0]):
            left -= 1
        # Only what the second thread has begun is waited for: it may not have woken at all.
        for _ in range(left):
            self._sent.get()
        if job.error is not None:
            raise job.error
        return job.unsent

    def close(self) -> None:
        """End the thread, and release the queues."""
        if self._second is not None:
            self._jobs.put(None)
            self._second.join()
            self._second = None
        for batch in (self._few, *self._many):
            batch.close()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            while job.send_piece(self._many[1]):
                self._sent.put(None)
