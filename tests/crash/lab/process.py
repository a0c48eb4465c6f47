"""The server under test: a kvd of its own, maybe under strace, maybe with a bug put in."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.crash.lab import nursery
from tests.crash.lab.nursery import ROOT
from tests.crash.lab.witness import WITNESS

__all__ = ["PATIENCE_S", "ROOT", "Kvd", "NotListening"]
PATIENCE_S = 60.0


class NotListening(Exception):
    """The server ended before it listened; the text is what it said."""


class Kvd:
    """A kvd process over one data directory, which may be started again and again."""

    def __init__(self, data_dir: Path, *flags: str, mutant: str | None = None) -> None:
        self.data_dir = data_dir
        self.flags = flags
        self.mutant = mutant
        self.stderr = ""
        self.port = 0
        self.ready_s = 0.0
        self._process: subprocess.Popen[str] | nursery.Forked | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The server's own process, also when it is traced."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """Its address, for a `Connection`."""
        return f"http://127.0.0.1:{self.port}"

    def start(
        self,
        *flags: str,
        straces: Mapping[str, Sequence[str]] | None = None,
        env: dict[str, str] | None = None,
        fresh: bool = False,
    ) -> "Kvd":
        """Start and wait until it listens; `NotListening` when it ends before."""
        self.launch(*flags, straces=straces, env=env, fresh=fresh)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.port, timeout=PATIENCE_S)
        if not self.port:
            late = self.running()
            self.kill()
            status = self.wait()
            why = f"does not listen after {PATIENCE_S} s" if late else f"ended with {status}"
            raise NotListening(f"{self.stderr}\n(it {why})")
        return self

    def launch(
        self,
        *flags: str,
        straces: Mapping[str, Sequence[str]] | None = None,
        env: dict[str, str] | None = None,
        fresh: bool = False,
    ) -> None:
        """Start without waiting.

        Args:
            flags: further flags of kvd.
            straces: arguments to a strace by the name of the thread that it traces, `*` for each;
                see nursery.py.
            env: what is added to the environment.
            fresh: in an interpreter of its own, instead of forked from one that is ready.
        """
        argv = ["--data-dir", str(self.data_dir), "--listen-client-urls", "http://127.0.0.1:0"]
        argv += [*self.flags, *flags]
        if (straces or self.mutant) and WITNESS not in (env or {}):
            # What the kernel syncs by itself neither strace nor a bug of ours can meddle with.
            argv += ["--wal-sync", "thread"]
        if self._reader is not None:
            # Or the end of the last life would be taken for this one's.
            self._reader.join(PATIENCE_S)
        self.port, self._ended, self.stderr = 0, False, ""
        self._started = time.monotonic()
        if fresh:
            self._process = self._open(argv, env or {})
        else:
            self._process = nursery.fork(
                self.mutant or "none", argv, env=env or {}, straces=straces or {}
            )
        stderr = self._process.stderr
        assert stderr is not None
        self._reader = threading.Thread(target=self._read, args=[stderr], daemon=True)
        self._reader.start()

    def _open(self, argv: Sequence[str], env: dict[str, str]) -> subprocess.Popen[str]:
        module = ["tests.crash.lab.mutant", self.mutant, "--"] if self.mutant else ["kvd"]
        return subprocess.Popen(
            [sys.executable, "-m", *module, *argv],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env=os.environ | env,
        )

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self._process is not None
        self._process.kill()
        self.wait()

    def terminate(self) -> int:
        """SIGTERM, and wait; the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end, and for that of its tracer; the exit status."""
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def wait_or_terminate(self) -> int:
        """Wait for the end if it has come, else bring it about; the exit status."""
        return self.terminate() if self.running() else self.wait()

    def running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End whatever still runs."""
        if self.running():
            self.kill()

    def __enter__(self) -> "Kvd":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is not None:
            # Beside the directory that is left, what its last server has said.
            self.wait()
            self.data_dir.with_name(f"{self.data_dir.name}.log").write_text(self.stderr)

    def _read(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                with self._changed:
                    self.stderr += line
                    found = re.search(r"listening on http://[^\s,]+:(\d+)", line)
                    if found and not self.port:
                        self.ready_s = time.monotonic() - self._started
                        self.port = int(found[1])
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
