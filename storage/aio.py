"""fdatasync by Linux AIO, with an eventfd that signals its completion.

A thread of ours that waits for the disk has to get the interpreter twice for each frame, against a
loop that keeps it busy. The kernel's own worker does not: a sync of 105 us took 150 us on a thread
and 138 us this way, and half of the CPU time (58 and 26 us, measured with frames of 300 bytes).

A sync that ends at once is not even worth a turn of the loop: `wait` waits for it, but no longer
than `WAIT_S`. It seems that it would not end at once otherwise: beside 16 to 256 readers a batch
took 8 ms, and 2 where up to a millisecond was waited (measured on Linux 6.18, two cores), as if the
worker had to wait until the loop, which finds something to read in each turn, gives up its
processor.

`wait` keeps the interpreter. Other threads lose less by that than the loop would if it let go of
it: against a thread that computes, it got it back 6 ms after the sync's end (a thread's turn is
5 ms long), and made 130 syncs a second instead of 1,200 (measured).

The system calls (io_setup(2), io_submit(2), io_getevents(2), linux/aio_abi.h) have no wrappers in
the C library. Where a kernel or a container does not have them, or IOCB_CMD_FDSYNC (Linux 4.18),
`DataSync` cannot be made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

WAIT_S = 0.001
"""The longest that `DataSync.wait` takes, give or take what the system takes to go on."""
BRIEFLY_S = 0.0002
"""The same where it waits briefly."""

_ZERO, _ONE = ctypes.c_long(0), ctypes.c_long(1)
_IOCB_CMD_FDSYNC = 3
_IOCB_FLAG_RESFD = 1


class Calls(NamedTuple):
    """The numbers of the system calls on one architecture."""

    setup: int
    destroy: int
    submit: int
    getevents: int


CALLS = {
    "x86_64": Calls(206, 207, 209, 208),
    "aarch64": Calls(0, 1, 2, 4),
    "riscv64": Calls(0, 1, 2, 4),
}

#     0 u64 data, 8 u32 key, 12 i32 flags of the write, 16 u16 command, 18 i16 priority,
#    20 u32 file, 24 u64 buffer, 32 u64 length, 40 i64 offset, 48 u64 reserved, 56 u32 flags,
#    60 u32 eventfd; the key and the flags change places on big-endian machines, which are not above
IOCB = Struct("<QIiHhIQQqQII")
assert IOCB.size == 64
#     0 u64 data, 8 u64 address of the iocb, 16 i64 result, 24 i64 second result
EVENT_I64, RESULT_I64 = 4, 2
"""Of how many integers an event consists, and the place of the result among them."""


class Queue(NamedTuple):
    """A queue of the kernel's, and how it is called."""

    calls: Calls
    syscall: Callable[..., int]
    context: ctypes.c_ulong

    def call(self, number: int, *arguments: object) -> int:
        """Make a system call, given its number and what follows.

        Raises:
            OSError: it failed.
        """
        result = self.syscall(ctypes.c_long(number), *arguments)
        if result < 0:
            raise last_error()
        return result

    def close(self) -> None:
        """Release the queue; waits for pending requests."""
        self.call(self.calls.destroy, self.context)


def open_queue(length: int, *, releases: bool = False) -> Queue:
    """Set up a queue for so many requests.

    Args:
        length: How many there may be at a time.
        releases: Let other threads have the interpreter during a call.

    Raises:
        OSError: it is not available here.
    """
    calls = CALLS.get(platform.machine())
    if calls is None or sys.platform != "linux":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    # None of these calls waits for long, so as a rule the interpreter is not released for them.
    library = (ctypes.CDLL if releases else ctypes.PyDLL)(None, use_errno=True)
    queue = Queue(calls, library.syscall, ctypes.c_ulong(0))
    queue.call(calls.setup, ctypes.c_long(length), ctypes.byref(queue.context))
    return queue


class DataSync:
    """Makes the data of one file at a time durable, as fdatasync does, without waiting for it.

    Attributes:
        fileno: an eventfd that becomes readable once the sync has ended, also where `wait` says so,
            until `outcome` or `clear` is called.
    """

    def __init__(self) -> None:
        """Set up a queue for one request.

        Raises:
            OSError: it cannot be had here.
        """
        self._queue = open_queue(1)
        calls, self._syscall, self._context = self._queue
        self._iocb = ctypes.create_string_buffer(IOCB.size)
        iocbs = (ctypes.c_void_p * 1)(ctypes.addressof(self._iocb))
        self._event = (ctypes.c_int64 * EVENT_I64)()
        # Timespecs: seconds and nanoseconds.
        wait, briefly = ((ctypes.c_long * 2)(0, int(s * 1e9)) for s in (WAIT_S, BRIEFLY_S))
        self._submit = ctypes.c_long(calls.submit), self._context, _ONE, iocbs
        get = ctypes.c_long(calls.getevents), self._context
        self._look = *get, _ZERO, _ONE, self._event, None
        self._wait = *get, _ONE, _ONE, self._event, wait
        self._wait_briefly = *get, _ONE, _ONE, self._event, briefly
        self._fd = -1
        self.fileno = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def submit(self, fd: int) -> None:
        """Begin to sync a file; `outcome` or `wait` tells how it went.

        Raises:
            OSError: nothing has begun: too many requests in the system, or not for such a file.
        """
        if fd != self._fd:
            self._fd = fd
            IOCB.pack_into(
                self._iocb,
                0,
                *(0, 0, 0, _IOCB_CMD_FDSYNC, 0, fd),
                *(0, 0, 0, 0, _IOCB_FLAG_RESFD, self.fileno),
            )
        if self._syscall(*self._submit) < 0:
            raise last_error()

    def wait(self, *, briefly: bool = False) -> int | None:
        """Return as `outcome` does, but wait for the end of the sync, up to `WAIT_S`.

        Args:
            briefly: up to `BRIEFLY_S`.
        """
        ended = self._syscall(*(self._wait_briefly if briefly else self._wait))
        if ended <= 0:
            if ended == 0 or (error := last_error()).errno == errno.EINTR:
                return None
            raise error
        return -self._event[RESULT_I64]

    def outcome(self) -> int | None:
        """Return 0 once the data is durable, an errno if that failed, None while it is unknown."""
        self.clear()
        # What ended before that is found here, what ends later is reported by the eventfd.
        if (ended := self._syscall(*self._look)) <= 0:
            if ended == 0:
                return None
            raise last_error()
        return -self._event[RESULT_I64]

    def clear(self) -> None:
        """Let `fileno` be readable no longer for what has ended."""
        try:  # noqa: SIM105 -- `suppress` would be four calls more for each batch
            os.eventfd_read(self.fileno)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """Let go of the queue; waits for a sync that is under way."""
        self._queue.close()
        os.close(self.fileno)


def last_error() -> OSError:
    """Return what the last call failed with."""
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
