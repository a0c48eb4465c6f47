"""A server of a test, and what a test can do to it: the value of the pytest fixtures."""

from __future__ import annotations

import errno
import operator
import os
import shutil
import ssl
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from kvd.client import AsyncClient, Client
from kvd.embedded import memory_directory, require_flags
from kvd.testing.addresses import Addresses, default_url
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
            flags: those of kvd, with underscores, but for `data_dir`. The address is a free port of
                127.0.0.1 unless `listen_client_urls` says otherwise.

        Raises:
            TypeError, ValueError: there is no such flag, or its value cannot be used.
            AddressUnavailable, TlsUnusable, ProcessEnded: it cannot be started.
        """
        flags = {name.replace("-", "_"): value for name, value in flags.items()}
        require_flags(flags)
        if "data_dir" in flags:
            raise TypeError("data_dir: a server of a test has a directory of its own")
        self._for_client = {"tls": tls, "username": username, "password": password}
        self._client: Client | None = None
        self._pid = os.getpid()
        self._addresses = Addresses()
        prefix = f"kvd-test-{os.getpid()}-"
        self._parent = Path(tempfile.mkdtemp(prefix=prefix, dir=memory_directory()))
        self._host: Host | None = None
        self._failed: BaseException | None = None
        self._free_bytes: int | None = None
        self.expects_failure = False
        """Whether a failure is what the test wants; set by `fail_next_fsync`."""
        try:
            urls = self._addresses.reserve(str(flags.get(_LISTEN) or default_url(flags)))
            flags = {"wal_segment_bytes": _SMALL_SEGMENT_BYTES, **flags, _LISTEN: urls}
            self._host = host(self.data_dir, flags)
            self._host.start()
            self.url = self._host.call("started")[0]
        except BaseException:
            self._let_go()
            raise

    @property
    def _running(self) -> Host:
        """The host of a server that serves.

        Raises:
            RuntimeError: it was stopped or has crashed.
            BaseException: what has ended its service.
        """
        self._require_parent()
        host = self._host
        if host is None or not host.is_running:
            raise RuntimeError("the server does not run")
        if host.failed is not None:
            raise host.failed
        return host

    def _require_parent(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this server belongs to the process that has forked this one")

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
        host = self._host if os.getpid() == self._pid else None
        return (host and host.failed) or self._failed

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
        self._require_parent()
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
        self._require_parent()
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
        self._running.call("fail_next_sync", operator.index(code))
        self.expects_failure = True

    def fill_disk(self, bytes: int | None = 0) -> None:  # noqa: A002 -- what it is
        """Leave that much room on the disk; None for what there is.

        Writes are refused (`ServerRefused`, error 300) with less room than a segment of the log,
        1 MiB, and the last snapshot take. Removals and expiry go on.
        """
        free = None if bytes is None else operator.index(bytes)
        self._running.call("fill_disk", free)
        self._free_bytes = free

    # Time

    def freeze_time(self, at: datetime | None = None) -> None:
        """Freeze the store's time, at a date if one is given (UTC if it has no zone).

        Only the store's: the program under test has a clock of its own. A date does not change how
        long keys live, as no step of a system's clock does, but what `expiration` shows. Dates
        from 1970 to 2199 can be shown; others raise ValueError.
        """
        self._running.machine.freeze(at)
        self._set_time()

    def thaw_time(self) -> None:
        """Let the time go on, from the time at which it was frozen."""
        self._running.machine.thaw()
        self._set_time()

    def advance(self, seconds: float) -> None:
        """Let the time jump, frozen or not.

        Everything that is due then has expired on return, and its events were sent to watchers.
        Negative seconds, and those that lead beyond 2199, raise ValueError.
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
        self._require_parent()
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
        """Stop it, close `client`, and leave nothing behind; a forked process leaves it alone.

        Raises:
            BaseException: the server has failed, and the test has not asked for it.
        """
        if self._client is not None:
            self._client.close()
        if os.getpid() != self._pid:
            return
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
        self._addresses.close()
        shutil.rmtree(self._parent, ignore_errors=True)
