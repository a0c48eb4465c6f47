"""The server under test: a kvd of its own, maybe under strace, maybe with a bug put in."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[3]
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
        self._process: subprocess.Popen[str] | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int:
        """The server's own process, also when it is traced."""
        assert self._process is not None
        return self._process.pid

    def start(
        self, *flags: str, strace: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> "Kvd":
        """Start and wait until it listens; `NotListening` when it ends before."""
        self.launch(*flags, strace=strace, env=env)
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self.port, timeout=PATIENCE_S)
        if not self.port:
            self.kill()
            raise NotListening(self.stderr)
        return self

    def launch(
        self, *flags: str, strace: Sequence[str] = (), env: dict[str, str] | None = None
    ) -> None:
        """Start without waiting. `strace` are arguments to it; it traces from aside (-D)."""
        module = ["tests.crash.lab.mutant", self.mutant, "--"] if self.mutant else ["kvd"]
        # A filter in the kernel makes tracing cheap, but signals are not injected through it.
        fast = [] if any("signal=KILL" in word for word in strace) else ["--seccomp-bpf"]
        tracer = ["strace", "-D", "-f", "-qq", *fast, *strace] if strace else []
        command = [*tracer, sys.executable, "-m", *module, "--data-dir", str(self.data_dir)]
        command += ["--listen-client-urls", "http://127.0.0.1:0", *self.flags, *flags]
        self.port, self._ended, self.stderr = 0, False, ""
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env=os.environ | (env or {}),
        )
        self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
        self._reader.start()

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

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
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
