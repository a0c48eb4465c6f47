"""The process and its surroundings: freed memory, and signals that mean nothing to kvd.

SIGTERM, SIGINT            stop; a second one ends the process at once
SIGHUP                     certificates are read again, where there are any
SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, SIGSTKFLT, real-time signals
                           ignored; the first of each is one line of log
SIGPIPE, SIGXFSZ, SIGTTOU  ignored: the write that causes them fails, or succeeds
SIGQUIT and others         as the system has them: SIGQUIT ends the process with a core dump
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger(__name__)

_NAMES = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPWR", "SIGSTKFLT")
_MEANINGLESS = (
    *(getattr(signal, name) for name in _NAMES if hasattr(signal, name)),
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
)

# Of mallopt(3), as in malloc.h. Blocks from the first size on go back to the system when they are
# freed; so does what is free at the end of the heap, beyond the second.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_MMAP_THRESHOLD_BYTES = 1 << 20
_TRIM_THRESHOLD_BYTES = 4 << 20
_COLLECT_AFTER = 50_000


def bound_freed_memory() -> None:
    """Keep little memory that was freed, but what the next batch of values needs.

    When a block of up to 32 MiB is freed, glibc takes blocks of that size from its heap from then
    on, where what is freed stays: 130 MB after values of 10 MiB have come and gone (measured). But
    128 KiB, beyond which it gives back the heap's end, come and go with each batch of large values:
    13 page faults for each write of 10 KB, a fifth of its time, and 0.2 with these.
    """
    with suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def give_back_freed_memory() -> None:
    """Give the system what is kept of freed memory: some milliseconds, by the heap's size."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the event loop: uvloop where it is installed (the extra `fast`)."""
    try:
        import uvloop  # noqa: PLC0415 -- it need not be there
    except ImportError:
        return asyncio.new_event_loop
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return new_loop


def settle_collector() -> None:
    """Let the garbage collector pass over all that is alive now, and run more rarely.

    A request makes hardly any cycles: collecting as often as Python does cost 7 % (measured).
    """
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


class FreedMemory:
    """Gives it back once nothing that takes memory has happened for a second.

    Args:
        position: returns what changes with each write, or whatever else takes memory.
        give_back: called then.
    """

    def __init__(
        self, position: Callable[[], int], give_back: Callable[[], object] = give_back_freed_memory
    ) -> None:
        self._position = position
        self._give_back = give_back
        self._seen = self._given_back_at = position()

    def tick(self) -> None:
        """Look whether that is so; called every second."""
        before, self._seen = self._seen, self._position()
        if before == self._seen != self._given_back_at:
            self._given_back_at = before
            self._give_back()


def prepare_signals() -> None:
    """Ignore the signals that would end the process and mean nothing to it; let the others in."""
    # `stty tostop` is not to stop the server. Before the loop runs, and when it has ended, there is
    # nothing to read again.
    for number in (signal.SIGTTOU, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for number in _MEANINGLESS:
        signal.signal(number, signal.SIG_IGN)
    # A parent that blocks these may not know that its children inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))


def log_meaningless_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Log the first of each of these signals."""
    for number in _MEANINGLESS:
        loop.add_signal_handler(number, _log_signal, loop, number)


def _log_signal(loop: asyncio.AbstractEventLoop, number: int) -> None:
    loop.remove_signal_handler(number)
    signal.signal(number, signal.SIG_IGN)
    log.warning("%s means nothing to kvd: ignored, now and from now on", _name(number))


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
