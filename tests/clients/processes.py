"""Ports, programs, and processes that end with their test, for tests of clients."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.server import PATIENCE_S, ROOT

CACHE = ROOT / ".clients"
"""Where scripts/setup-clients puts what it installs."""
PYTHON = CACHE / "python" / "bin" / "python"
_DEBIAN = CACHE / "debian" / "usr"
_PATH = os.pathsep.join(
    [os.environ["PATH"], str(_DEBIAN / "bin"), str(_DEBIAN / "sbin"), "/usr/sbin"]
)


def wait_for_port(port: int, has_ended: Callable[[], object]) -> None:
    """Wait until somebody listens on a port."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
            return
        ended = has_ended()
        assert not ended, f"it has ended: {ended}"
        assert time.monotonic() < deadline, f"nobody listens on {port}"
        time.sleep(0.02)


def program(*names: str) -> str:
    """The path of an installed program, by the first of its names; without it, a skip."""
    for name in names:
        found = shutil.which(name, path=_PATH)
        if found is not None:
            return found
    pytest.skip(f"there is no {names[0]} here; scripts/setup-clients installs it")


KVD_COMMAND = f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m kvd'


def as_etcd(directory: Path, command: str = KVD_COMMAND) -> Path:
    """A directory to put in front of PATH: `etcd` is this shell command there."""
    directory.mkdir(exist_ok=True)
    script = directory / "etcd"
    script.write_text(f'#!/bin/sh\n{command} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return directory


class Process:
    """A process whose output is read as it comes; its whole session is ended at the end."""

    def __init__(
        self,
        *command: Path | str,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        """All that it has said."""
        with self._changed:
            return "".join(self.lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_ended(self) -> str:
        """Nothing while it runs, then what it has said."""
        return "" if self._process.poll() is None else self.text or "silently"

    def wait_for(self, said: str | Callable[[str], bool], timeout_s: float = PATIENCE_S) -> str:
        """Wait until what it has said holds a text, or fulfils a condition; all of it."""
        holds = said if callable(said) else lambda text: said in text
        with self._changed:
            self._changed.wait_for(
                lambda: holds("".join(self.lines)) or self._ended, timeout=timeout_s
            )
        text = self.text
        assert holds(text), f"{said!r} was never said:\n{text}"
        return text

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; its exit status."""
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it and whatever it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # Not for the end of its output: a daemon that it has left behind may hold that open.
        self._process.wait(PATIENCE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                with self._changed:
                    self.lines.append(line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def run(
    *command: Path | str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
    cwd: Path | None = None,
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
