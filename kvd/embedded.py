"""`kvd.Server`: kvd as a guest of another program, in a thread or on the program's event loop.

Many can run in one process, each over its own directory. A guest changes nothing that belongs to
the process: no signal handler, no limit, no level of the root logger, no garbage collector; and a
failure ends the guest alone.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path
from typing import Any, Self, TypeVar

from kvd import process
from kvd.config.config import Config
from kvd.config.load import ConfigError, parse
from kvd.config.sources import BY_NAME
from kvd.core.clock import Clock
from kvd.server import KvdServer
from kvd.storage.failpoints import DEADLY, Fault, Faults
from kvd.storage.failpoints import parse as parse_fault

T = TypeVar("T")

log = logging.getLogger(__name__)
logging.getLogger("kvd").addHandler(logging.NullHandler())

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- a directory of our own is made in it
_CONNECTIONS_MAX = 256
"""By default: the limit of open files is the host's."""
_AT_EXIT_S = 3.0


class Server:
    """A kvd in this process: in a separate thread (`with`), or on the running loop (`async with`).

    Example:
        >>> import kvd
        >>> with kvd.Server(memory=True) as server, kvd.Client(server.url) as client:
        ...     client.set("/greeting", "hello").node.value
        'hello'
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        listen: str = "http://127.0.0.1:0",
        memory: bool = False,
        faults: Faults | None = None,
        clock: Callable[[int, int], Clock] = Clock,
        **flags: str | int | bool,
    ) -> None:
        """Prepare a server; nothing is opened before it is started.

        Args:
            data_dir: its directory, which is made if it is missing.
            listen: the addresses to serve, separated by commas; port 0 takes a free one.
            memory: keep all data in a directory on tmpfs that is removed at the end.
            faults: those that are to be made in this server alone (`kvd.storage.failpoints`). The
                faults of the flag `failpoint` are armed in it at each start.
            clock: makes its clock, of the last time in the log and the clock's offset.
            flags: kvd's flags, with underscores: `event_history_limit=100_000`.

        Raises:
            TypeError: there is no such flag, or neither a directory nor `memory`.
            ValueError: a value cannot be used; the message is the command line's.
            RuntimeError: the system is not Linux.
        """
        _check_arguments(data_dir, flags, memory=memory)
        flags.setdefault("max_connections", _CONNECTIONS_MAX)
        self._flags = {"listen_client_urls": listen, **flags}
        self._directory = None if data_dir is None else Path(data_dir)
        self._new_clock = clock
        config = self._config(self._directory or _SHARED_MEMORY)
        self._faults = Faults() if faults is None else faults
        self._armed = _faults_of(config)
        self._pid = os.getpid()
        self._server: KvdServer | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._is_crash = False
        self._stop_error: BaseException | None = None
        self._removed: Path | None = None

    def _config(self, directory: Path) -> Config:
        texts = {
            name.replace("_", "-"): str(what).lower() if isinstance(what, bool) else str(what)
            for name, what in self._flags.items()
        }
        argv = [f"--{name}={text}" for name, text in texts.items()]
        try:
            config = parse([*argv, f"--data-dir={directory}"])
        except ConfigError as error:
            raise ValueError(str(error)) from None
        if not isinstance(config, Config):
            raise TypeError("flags that print something are for the command line")
        return config

    # State

    @property
    def durable(self) -> bool:
        """Whether its data outlive the process and the machine."""
        return self._directory is not None

    @property
    def data_dir(self) -> Path:
        """Its directory; with `memory`, only while it runs."""
        found = self._directory or self._removed
        if found is None:
            raise RuntimeError("a server in memory has a directory only while it runs")
        return found

    @property
    def failed(self) -> BaseException | None:
        """The error that has ended the service; None while there is none."""
        return None if self._server is None else self._server.failed

    @property
    def urls(self) -> list[str]:
        """The addresses that are served, with the ports that the system chose.

        Raises:
            RuntimeError: it does not run.
            BaseException: what has ended the service.
        """
        self._require_parent()
        if self._server is None:
            raise RuntimeError("the server does not run")
        if self._server.failed is not None:
            raise self._server.failed
        return list(self._server.urls)

    @property
    def url(self) -> str:
        """The first of `urls`."""
        return self.urls[0]

    def _require_parent(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this server belongs to the process that has forked this one")

    # In a thread

    def start(self) -> Self:
        """Start it in a thread; returns once it listens.

        Raises:
            AddressUnavailable, TlsUnusable, StorageError: see `KvdServer.start`.
            RuntimeError: it runs already.
        """
        self._require_parent()
        if self._server is not None:
            raise RuntimeError("the server runs already")
        ready: Future[None] = Future()
        # Context variables, such as those of loggers, are the caller's.
        run = copy_context().run
        self._thread = threading.Thread(
            target=run, args=[self._serve, ready], name="kvd", daemon=True
        )
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            # An interrupt leaves a server that may still be starting.
            ready.add_done_callback(lambda _: self._request_end())
            self._thread.join()
            self._thread = self._loop = self._end = None
            raise
        atexit.register(self._stop_at_exit)
        return self

    def _request_end(self) -> None:
        if self._loop is not None and self._end is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._end.set)

    def _serve(self, ready: Future[None]) -> None:
        with asyncio.Runner(loop_factory=process.new_loop()) as runner:
            runner.run(self._run(ready))

    async def _run(self, ready: Future[None]) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            await self._begin()
        except BaseException as error:  # noqa: BLE001 -- raised where it was started
            ready.set_exception(error)
            return
        ready.set_result(None)
        await self._end.wait()
        try:
            await self._finish()
        except BaseException as error:  # noqa: BLE001 -- raised where it was stopped
            self._stop_error = error

    def stop(self) -> None:
        """Stop it cleanly; a server that does not run is left alone.

        Raises:
            BaseException: what has ended the service before, or kept it from a clean stop.
        """
        self._stop(is_crash=False)

    def crash(self) -> None:
        """End it as `kill -9` would: no answer, nothing synced, all connections reset."""
        self._stop(is_crash=True)

    def call(self, act: Callable[[KvdServer], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine on the loop of the server, from another thread; return its result.

        For tests that do more to a server than its clients can: what `KvdServer` has is no API.

        Raises:
            RuntimeError: it does not run in a thread.
        """
        self._require_parent()
        server, loop = self._server, self._loop
        if server is None or loop is None:
            raise RuntimeError("the server does not run in a thread")
        return asyncio.run_coroutine_threadsafe(act(server), loop).result()

    def _stop(self, *, is_crash: bool, timeout: float | None = None) -> None:
        self._require_parent()
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        self._is_crash = is_crash
        self._request_end()
        thread.join(timeout)
        atexit.unregister(self._stop_at_exit)
        self._thread = self._loop = self._end = None
        error, self._stop_error = server.failed or self._stop_error, None
        if error is not None and not is_crash:
            raise error

    def _stop_at_exit(self) -> None:
        if os.getpid() == self._pid:
            self._stop(is_crash=False, timeout=_AT_EXIT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.stop()
        except BaseException:
            # What the body has raised tells more.
            if kind is None:
                raise

    # On the running loop

    async def __aenter__(self) -> Self:
        self._require_parent()
        if self._server is not None:
            raise RuntimeError("the server runs already")
        await self._begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        failed = self.failed
        await self._finish()
        if failed is not None and kind is None:
            raise failed

    async def _begin(self) -> None:
        if self._directory is None:
            self._removed = Path(tempfile.mkdtemp(prefix="kvd-", dir=memory_directory()))
            log.warning("%s: in memory: nothing is kept", self._removed)
        config = self._config(self.data_dir)
        if self._armed:
            self._faults.arm(self._armed)
        server = KvdServer(config, faults=self._faults, clock=self._new_clock)
        try:
            await server.start()
        except BaseException:
            self._remove()
            raise
        self._server = server

    async def _finish(self) -> None:
        server = self._server
        assert server is not None
        try:
            if self._is_crash:
                await server.abandon()
            else:
                await server.stop()
        finally:
            self._is_crash = False
            self._server = None
            self._remove()

    def _remove(self) -> None:
        if self._removed is not None:
            shutil.rmtree(self._removed, ignore_errors=True)
            self._removed = None


def _check_arguments(data_dir: Path | str | None, flags: Iterable[str], *, memory: bool) -> None:
    if sys.platform != "linux":
        raise RuntimeError("kvd needs Linux (eventfd)")
    if (data_dir is None) != memory:
        raise TypeError("a server needs either a data_dir or memory=True")
    require_flags(flags)


def require_flags(names: Iterable[str]) -> None:
    """Raise TypeError unless kvd has these flags."""
    for name in names:
        if name.replace("_", "-") not in BY_NAME:
            raise TypeError(f"kvd has no flag {name!r}")


def _faults_of(config: Config) -> list[Fault]:
    """Return the faults of the flag `failpoint`.

    Raises:
        ValueError: one cannot be made, or would kill the program.
    """
    faults = [*map(parse_fault, config.failpoints)]
    if deadly := [fault.name for fault in faults if fault.action in DEADLY]:
        raise ValueError(f"--failpoint: {deadly[0]}: that would kill the program around the server")
    return faults


def memory_directory() -> Path | None:
    """Return where tmpfs is, or None for the system's directory for temporary files."""
    usable = _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK | os.X_OK)
    return _SHARED_MEMORY if usable else None
