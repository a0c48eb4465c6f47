"""Steps of operations taken with blocking sockets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from kvd.client.wire import Connect, Endpoint, Operation, Receive, Send, Sleep, Step

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")
_RECEIVED_BYTES = 64 << 10
# A peer whose machine has gone is noticed within half a minute, where nothing else would tell: by
# a long poll without an event.
_KEEPALIVE = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._pid = os.getpid()

    def is_stale(self) -> bool:
        return is_readable(self.sock.fileno())

    def close(self) -> None:
        # Another thread that reads from it is woken by the first, not by the second. A copy that a
        # fork has made is put away without the first, which would end the parent's connection.
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def is_readable(fd: int) -> bool:
    """Return whether a socket that should be silent has something, if only its end."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def keep_alive(sock: socket.socket) -> None:
    """Have the system look after a connection that is silent."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Driver:
    """Takes the steps of operations, in the calling thread."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls

    def run(self, operation: Operation[T], sleep: Callable[[float], object]) -> T:
        """Return the result of an operation."""
        try:
            step = operation.send(None)
            while True:
                try:
                    done = self._take(step, sleep)
                except BaseException as error:  # noqa: BLE001 -- the operation decides
                    step = operation.throw(error)
                else:
                    step = operation.send(done)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            operation.close()

    def _take(self, step: Step, sleep: Callable[[float], object]) -> object:
        match step:
            case Send(connection, data, timeout):
                connection.sock.settimeout(timeout)
                return connection.sock.sendall(data)
            case Receive(connection, timeout):
                connection.sock.settimeout(timeout)
                return connection.sock.recv(_RECEIVED_BYTES)
            case Connect(endpoint, timeout):
                return self._connect(endpoint, timeout)
            case Sleep(seconds):
                return sleep(seconds)

    def _connect(self, endpoint: Endpoint, timeout: float) -> _Connection:
        if endpoint.path:
            sock = socket.socket(socket.AF_UNIX)
        else:
            sock = socket.create_connection((endpoint.host, endpoint.port), timeout)
        try:
            if endpoint.path:
                sock.settimeout(timeout)
                sock.connect(endpoint.path)
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                keep_alive(sock)
            if endpoint.tls:
                self._tls = tls_context(self._tls)
                sock = self._tls.wrap_socket(sock, server_hostname=endpoint.tls_name)
        except BaseException:
            sock.close()
            raise
        return _Connection(sock)


def tls_context(given: ssl.SSLContext | None) -> ssl.SSLContext:
    """Return the context for TLS: the given one, or that of the system's authorities."""
    import ssl  # noqa: PLC0415 -- 10 ms that programs without TLS need not wait for

    return given or ssl.create_default_context()
