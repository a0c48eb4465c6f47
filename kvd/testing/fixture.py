"""A server of a test, and what a test can do to it: the value of the pytest fixtures."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from kvd.client import AsyncClient, Client
from kvd.embedded import memory_directory
from kvd.testing.hosts import Flag, Guest, Host

_SMALL_SEGMENT_BYTES = 1 << 20
_LISTEN = "listen_client_urls"


class KvdFixture:
    """A kvd that is as durable as any, in a directory in memory that is removed at the end.

    It keeps its port and its directory over `crash`, `stop`, `restart` and failures, so clients
    find it again.
    """

    def __init__(
        self,
        host: Callable[[Path, Mapping[str, Flag]], Host] = Guest,
        *,
        tls: ssl.SSLContext | None = None,
        username: str | None = None,
        password: str | None = None,
        **flags: Flag,
    ) -> None:
        """Start a server.

        Args:
            host: where it runs: `Guest` or `Child`.
            tls: used by `client` and `async_client`, as is the following.
            username: with its password, once there are users.
            password: see `username`.
            flags: those of kvd, with underscores. The address is a free port of 127.0.0.1 unless
                `listen_client_urls` says otherwise.

        Raises:
            TypeError, ValueError: there is no such flag, or its value cannot be used.
            AddressUnavailable, TlsUnusable, ProcessEnded: it cannot be started.
        """
        self._for_client = {"tls": tls, "username": username, "password": password}
        self._client: Client | None = None
        # Bound but not listening: no other program is given the port while the server is down.
        self._reserved = socket.socket()
        prefix = f"kvd-test-{os.getpid()}-"
        self._parent = Path(tempfile.mkdtemp(prefix=prefix, dir=memory_directory()))
        self._host: Host | None = None
        self._failed: BaseException | None = None
        self._free_bytes: int | None = None
        self.expects_failure = False
        """Whether a failure is what the test wants; set by `fail_next_fsync`."""
        try:
            self.url = self._address(flags)
            self._host = host(
                self.data_dir,
                {"wal_segment_bytes": _SMALL_SEGMENT_BYTES, _LISTEN: self.url, **flags},
            )
            self._host.start()
            self.url = self._host.call("started")[0]
        except BaseException:
            self._let_go()
            raise

    def _address(self, flags: Mapping[str, Flag]) -> str:
        """Return the address to serve, with a port that stays the server's."""
        if _LISTEN in flags:
            return str(flags[_LISTEN])
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind(("127.0.0.1", 0))
        is_tls = "cert_file" in flags or flags.get("auto_tls")
        scheme = "https" if is_tls else "http"
        return f"{scheme}://127.0.0.1:{self._reserved.getsockname()[1]}"

    @property
    def _running(self) -> Host:
        """The host of a server that serves.

        Raises:
            RuntimeError: it was stopped or has crashed.
            BaseException: what has ended its service.
        """
        host = self._host
        if host is None or not host.is_running:
            raise RuntimeError("the server does not run")
        if host.failed is not None:
            raise host.failed
        return host

    # What there is

    @property
    def port(self) -> int:
        """The port of `url`; 0 for a unix socket."""
        return urlsplit(self.url).port or 0

    @property
    def data_dir(self) -> Path:
        """The directory of its data."""
        return self._parent / "data"

    @property
    def client(self) -> Client:
        """A client of it, always the same; it is closed at the end."""
        if self._client is None:
            self._client = Client(self.url, **self._for_client)  # type: ignore[arg-type]
        return self._client

    def async_client(self) -> AsyncClient:
        """Return a new client for `async with`."""
        return AsyncClient(self.url, **self._for_client)  # type: ignore[arg-type]

    @property
    def index(self) -> int:
        """The index of the last event (X-Etcd-Index)."""
        return int(self._running.call("index"))

    @property
    def log(self) -> list[str]:
        """The log lines of kvd since this test began; they are shown if it fails."""
        return [] if self._host is None else self._host.read_log()

    @property
    def failed(self) -> BaseException | None:
        """The error that has ended its service; None while it serves, and after the next start."""
        found = None if self._host is None else self._host.failed
        return found or self._failed

    def dump(self) -> dict[str, str]:
        """Return the values of all files by their keys, hidden ones too, whatever users may see."""
        found: dict[str, str] = self._running.call("dump")
        return found

    def wait_for_index(self, index: int, timeout: float = 5) -> None:
        """Wait until the server's index has come to `index`.

        Raises:
            TimeoutError: it has not within `timeout` seconds.
        """
        host = self._running
        if not host.call("wait_for_index", index, timeout):
            found = host.call("index")
            raise TimeoutError(f"the index is {found} after {timeout} s, expected {index}")

    # Life

    def start(self) -> None:
        """Start it again after `stop`, `crash` or a failure.

        Raises:
            RuntimeError: it runs.
        """
        host = self._host
        if host is None:
            raise RuntimeError("the test of this server has ended")
        if host.is_running and host.failed is None:
            raise RuntimeError("the server runs already")
        self._end(Host.crash)
        self._failed = None
        self.expects_failure = False
        host.start()
        if self._free_bytes is not None:
            host.call("fill_disk", self._free_bytes)

    def stop(self) -> None:
        """Stop it cleanly; nothing happens to one that does not run."""
        self._end(Host.stop)

    def crash(self) -> None:
        """End it as `kill -9` does: no answer, nothing synced, connections reset."""
        self._end(Host.crash)

    def restart(self, *, clean: bool = True) -> None:
        """Stop it, or with `clean=False` let it crash, and start it at the same address."""
        self._end(Host.stop if clean else Host.crash)
        self.start()

    def _end(self, end: Callable[[Host], None]) -> None:
        host = self._host
        if host is None or not host.is_running:
            return
        self._failed = host.failed
        name = "crash" if self._failed is not None else end.__name__
        getattr(host, name)()

    # Faults

    def fail_next_fsync(self, code: int = errno.EIO) -> None:
        """Have the next sync of the log fail.

        The server stops as it does in production: nothing is acknowledged any more, and `failed` is
        set. The write that needed the sync raises `OutcomeUnknown`. `start` starts it again.
        """
        self._running.call("fail_next_sync", code)
        self.expects_failure = True

    def fill_disk(self, bytes: int | None = 0) -> None:  # noqa: A002 -- what it is
        """Leave that much room on the disk; None for what there is.

        Writes are refused (`ServerRefused`, error 300) with less room than a segment of the log,
        1 MiB, and the last snapshot take. Removals and expiry go on.
        """
        self._free_bytes = bytes
        self._running.call("fill_disk", bytes)

    # Time

    def freeze_time(self, at: datetime | None = None) -> None:
        """Freeze the store's time, at a date if one is given (UTC if it has no zone).

        Only the store's: the program under test has a clock of its own. A date does not change how
        long keys live, as no step of a system's clock does, but what `expiration` shows.
        """
        self._running.machine.freeze(None if at is None else _since_1970_ns(at))
        self._set_time()

    def thaw_time(self) -> None:
        """Let the time go on, from the time at which it was frozen."""
        self._running.machine.thaw()
        self._set_time()

    def advance(self, seconds: float) -> None:
        """Let the time jump, frozen or not.

        Everything that is due then has expired on return, and its events were sent to watchers.
        """
        if not seconds >= 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._running.machine.advance(int(seconds * 1e9))
        self._set_time()

    def _set_time(self) -> None:
        host = self._running
        host.call("set_time", *host.machine.setting)

    # End

    def reset(self) -> None:
        """Remove all keys, users and roles, and end what was done to disk and time.

        Starts the server if it does not run. The index goes on.
        """
        host = self._host
        if host is not None and (not host.is_running or host.failed is not None):
            self.start()
        host = self._running
        host.machine.thaw()
        self._free_bytes = None
        host.call("reset", *host.machine.setting)
        self.expects_failure = False

    def clear_log(self) -> None:
        """Forget the log lines so far."""
        if self._host is not None:
            self._host.clear_log()

    def close(self) -> None:
        """Stop it, close `client`, and leave nothing behind.

        Raises:
            BaseException: the server has failed, and the test has not asked for it.
        """
        if self._client is not None:
            self._client.close()
        try:
            self._end(Host.stop)
        finally:
            failed = self.failed
            self._let_go()
        if failed is not None and not self.expects_failure:
            raise failed

    def _let_go(self) -> None:
        if self._host is not None:
            with suppress(Exception):
                self._end(Host.crash)
            self._host.close()
            self._host = None
        self._reserved.close()
        shutil.rmtree(self._parent, ignore_errors=True)


def _since_1970_ns(at: datetime) -> int:
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
