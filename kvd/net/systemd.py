"""systemd: sockets handed over by the service manager, and notifications to it.

Both protocols are so small that they are spoken here instead of through a library. sd_notify(3) is
one datagram, lines of `NAME=value`, to the unix socket that `$NOTIFY_SOCKET` names. Sockets handed
over, sd_listen_fds(3), are the file descriptors from 3 on: `$LISTEN_FDS` says how many, with names
in `$LISTEN_FDNAMES`, and they are meant for the process `$LISTEN_PID`. What starts a service
without speaking them sets no such variables; then nothing is sent, and nothing found.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import NamedTuple

from kvd.lines import printable

log = logging.getLogger(__name__)

_FIRST_FD = 3
# Sanity limit of the number of sockets.
_FDS_MAX = 1024
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
# The receiver is another process with a queue, which may be full for a moment.
_SEND_S = 1.0
# An index of many millions of keys takes minutes to build, and a killed start begins again.
_EXTENSION_S = 30


class BadHandover(Exception):
    """A descriptor that was handed over cannot be served; the message says why."""


class Handed(NamedTuple):
    """A socket that was handed over, listening or at least bound, with its name in the unit."""

    name: str
    socket: socket.socket


class Notifier:
    """Notifies the service manager of the state of the service, if there is one."""

    def __init__(self, address: str, watchdog_s: float | None) -> None:
        # A leading @ stands for the zero byte of an abstract address.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._timer: asyncio.TimerHandle | None = None
        self._is_heard = True

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """Return a notifier by the environment, whose variables are removed: children have none."""
        address = environ.pop("NOTIFY_SOCKET", "")
        period_us = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        asked = period_us.isdecimal() and int(period_us) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(period_us) / 1e6 if asked else None)

    def starting(self, loop: asyncio.AbstractEventLoop, status: str) -> None:
        """Report the start, and extend its timeout until `serving`."""
        self._send(f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1_000_000}", f"STATUS={status}")
        self._timer = loop.call_later(_EXTENSION_S / 3, self.starting, loop, status)

    def serving(self, loop: asyncio.AbstractEventLoop, status: str) -> None:
        """Report that the service is ready, and start to feed the watchdog."""
        if self._timer is not None:
            self._timer.cancel()
        self.ready(status)
        self._pat(loop)

    def ready(self, status: str) -> None:
        """Report that the service is ready, after a start or a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report a reload; `ready` follows."""
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_us}")

    def stopping(self, status: str) -> None:
        """Report that the service stops."""
        self._send("STOPPING=1", f"STATUS={status}")

    def _pat(self, loop: asyncio.AbstractEventLoop) -> None:
        """Feed the watchdog from the event loop, twice a period: it fires when the loop hangs."""
        if self._watchdog_s is None:
            return
        self._send("WATCHDOG=1")
        self._timer = loop.call_later(self._watchdog_s / 2, self._pat, loop)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_S)
                sender.sendto("\n".join(map(printable, lines)).encode(), self._address)
        except OSError as error:
            if self._is_heard:
                log.warning("cannot notify the service manager of %s: %s", lines[0], error)
            self._is_heard = False
        else:
            self._is_heard = True


def take_sockets(environ: MutableMapping[str, str]) -> list[Handed]:
    """Return the sockets that were handed over, made non-inheritable.

    Raises:
        BadHandover: one of them is not a stream socket that can be listened on.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()):
        return []
    if not (count.isdecimal() and int(count) <= _FDS_MAX):
        raise BadHandover(f'LISTEN_FDS: expected a number of sockets, found "{count}"')
    names += [""] * int(count)
    return [_handed(_FIRST_FD + n, names[n]) for n in range(int(count))]


def _handed(fd: int, name: str) -> Handed:
    try:
        os.set_inheritable(fd, False)
        handed = socket.socket(fileno=fd)
    except OSError as error:
        raise BadHandover(f"file descriptor {fd} was handed over: {error.strerror}") from None
    if handed.type != socket.SOCK_STREAM or handed.family not in _FAMILIES:
        raise BadHandover(f"file descriptor {fd} was handed over: not a stream socket")
    if handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0:
        raise BadHandover(f"file descriptor {fd} was handed over: the socket does not listen")
    handed.setblocking(False)
    return Handed(name, handed)
