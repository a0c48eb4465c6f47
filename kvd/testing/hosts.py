"""The two places for the server of a test: a thread of this process, or another process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from kvd.embedded import Server
from kvd.server import KvdServer
from kvd.storage.failpoints import Faults
from kvd.testing.controls import Controls
from kvd.testing.log_lines import collected, owning
from kvd.testing.machine_time import MachineTime

Flag = str | int | bool

# kvd reads its flags from these, too; and what systemd tells a service is not for one below it.
_FOREIGN = ("KVD_", "ETCD_", "NOTIFY_", "LISTEN_", "WATCHDOG_")
_STOP_S = 20.0


class Host(Protocol):
    """Runs one server at a time over one directory."""

    machine: MachineTime
    """By whose clocks the server goes; `set_time` has a running one take note of a change."""

    @property
    def is_running(self) -> bool:
        """Whether it is started, and was neither stopped nor crashed; it may have failed."""

    @property
    def failed(self) -> BaseException | None:
        """The error that has ended the service, or is ending the process; None while it serves."""

    def start(self) -> None:
        """Start the server; it serves on return."""

    def stop(self) -> None:
        """Stop it cleanly."""

    def crash(self) -> None:
        """End it as `kill -9` does."""

    def read_log(self) -> list[str]:
        """Return the log lines since the start, or since `clear_log`."""

    def clear_log(self) -> None:
        """Forget the log lines so far."""

    def call(self, verb: str, *arguments: object) -> Any:
        """Have a method of `Controls` run, and return what it returns."""

    def close(self) -> None:
        """Leave nothing of it behind; it does not run."""


class Guest:
    """A server in a thread of this process."""

    def __init__(self, directory: Path, flags: Mapping[str, Flag]) -> None:
        self.machine = MachineTime()
        self._faults = Faults()
        self._server = Server(
            directory, faults=self._faults, clock=self.machine.clock, **_for_server(flags)
        )
        self._log: list[str] = []
        self._controls: Controls | None = None
        self._stack = ExitStack()
        self._stack.enter_context(collected(self._log))

    @property
    def is_running(self) -> bool:
        """See `Host`."""
        return self._controls is not None

    @property
    def failed(self) -> BaseException | None:
        """See `Host`."""
        return self._server.failed

    def start(self) -> None:
        """See `Host`."""
        with owning(self._log):
            self._server.start()
        self._controls = self._server.call(self._new_controls)

    async def _new_controls(self, server: KvdServer) -> Controls:
        return Controls(server, self._faults, self.machine)

    def stop(self) -> None:
        """See `Host`."""
        self._end()
        self._server.stop()

    def crash(self) -> None:
        """See `Host`."""
        self._end()
        self._server.crash()

    def _end(self) -> None:
        self._controls = None
        self._faults.arm([])

    def read_log(self) -> list[str]:
        """See `Host`."""
        return [*self._log]

    def clear_log(self) -> None:
        """See `Host`."""
        self._log.clear()

    def call(self, verb: str, *arguments: object) -> Any:
        """See `Host`."""
        controls = self._controls
        assert controls is not None
        with owning(self._log):
            return self._server.call(lambda _: getattr(controls, verb)(*arguments))

    def close(self) -> None:
        """See `Host`."""
        self._stack.close()


def _for_server(flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Return flags as `Server` takes them."""
    given = dict(flags)
    return {"listen": given.pop("listen_client_urls"), **given}


class ProcessEnded(Exception):
    """The process of a server has ended for a reason of its own, which its last line gives."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(status, line)
        self.status = status

    def __str__(self) -> str:
        status, line = self.args
        return f"kvd has ended with status {status}: {line}"


class Child:
    """A server in a process of its own: `kvd.testing.child`, which is `kvd` with verbs."""

    def __init__(self, directory: Path, flags: Mapping[str, Flag]) -> None:
        self.machine = MachineTime()
        self._failed: BaseException | None = None
        self._flags = {"data_dir": str(directory), **flags}
        self._log = os.memfd_create("kvd-log")
        self._log_from = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._channel = socket.socket()
        self._received = b""
        self._turn = threading.Lock()  # of the one thread whose verb is being answered
        self._turns = 0

    @property
    def is_running(self) -> bool:
        """See `Host`."""
        return self._process is not None

    @property
    def failed(self) -> BaseException | None:
        """See `Host`."""
        if self._process is not None and self._failed is None:
            # One that is about to end is still there, but answers no more: its end is waited for.
            with suppress(ProcessEnded, RuntimeError):
                self._call(_STOP_S, "index")
        return self._failed

    def start(self) -> None:
        """See `Host`."""
        self._failed = None
        ours, theirs = socket.socketpair()
        setting = json.dumps(self.machine.setting)
        command = [sys.executable, "-P", "-m", "kvd.testing.child", str(theirs.fileno()), setting]
        self._channel.close()
        self._channel, self._received = ours, b""
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 -- our own module, the test's flags
                [*command, *map(_argument, self._flags, self._flags.values())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                process_group=0,  # the Ctrl-C that ends a test, or is part of it, is not its
            )
        try:
            self.call("started")
        except BaseException:
            self._end(signal.SIGKILL)
            raise

    def stop(self) -> None:
        """See `Host`."""
        if status := self._end(signal.SIGTERM):
            raise self._failed or self._note_end(status)

    def crash(self) -> None:
        """See `Host`."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        return _wait(process)

    def _note_end(self, status: int) -> ProcessEnded:
        lines = self.read_log()
        self._failed = ended = ProcessEnded(status, lines[-1] if lines else "")
        return ended

    def read_log(self) -> list[str]:
        """See `Host`."""
        size = os.fstat(self._log).st_size
        raw = os.pread(self._log, size - self._log_from, self._log_from)
        return raw.decode(errors="replace").splitlines()

    def clear_log(self) -> None:
        """See `Host`."""
        self._log_from = os.fstat(self._log).st_size

    def call(self, verb: str, *arguments: object) -> Any:
        """See `Host`."""
        return self._call(None, verb, *arguments)

    def _call(self, timeout: float | None, verb: str, *arguments: object) -> Any:
        """Return the answer to a verb; end the process if there is none in so many seconds."""
        outcome = None
        with self._turn, suppress(OSError):  # it ends meanwhile, or is too slow
            self._turns += 1
            self._channel.settimeout(timeout)
            self._channel.sendall(json.dumps([self._turns, verb, *arguments]).encode() + b"\n")
            outcome = self._outcome(self._turns)
        if outcome is None:
            process = self._process
            if process is None:  # another thread has ended it
                raise RuntimeError("the server does not run")
            raise self._note_end(_wait(process))
        if "error" in outcome:
            raise RuntimeError(outcome["error"])
        return outcome["result"]

    def _outcome(self, turn: int) -> dict[str, Any] | None:
        """Return the answer to this verb, None if none comes; answers to others are skipped.

        Those are of verbs whose caller was interrupted (Ctrl-C, a timeout of the test).
        """
        while more := self._channel.recv(1 << 20):
            *lines, self._received = (self._received + more).split(b"\n")
            for line in lines:
                with suppress(ValueError):  # the interrupt has cost a part of it
                    answered, outcome = json.loads(line)
                    if answered == turn:
                        found: dict[str, Any] = outcome
                        return found
        return None

    def close(self) -> None:
        """See `Host`."""
        self._channel.close()
        os.close(self._log)


def _environment() -> dict[str, str]:
    """Return the environment of a child, in which it finds the modules that this process finds.

    Python's own first entry, the directory in which it is started, may hold files of the project
    that have the names of modules.
    """
    ours = {name: text for name, text in os.environ.items() if not name.startswith(_FOREIGN)}
    return ours | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process, which is killed if that takes too long; return its status."""
    try:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _argument(name: str, what: Flag) -> str:
    text = str(what).lower() if isinstance(what, bool) else str(what)
    return f"--{name.replace('_', '-')}={text}"
