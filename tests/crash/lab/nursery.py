"""A process that has read the server's modules already, and forks a server from itself when asked.

Most of a start is the interpreter's: what takes 300 ms takes 40 this way, and ten thousand starts
become affordable. Each server is a process of its own, with its own id, exit status and death.

A server may be traced thread by thread. strace counts calls by thread, and with -f it is whichever
thread gets to the Nth first that is hit; here each thread has a strace of its own.
"""

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
_REQUEST_BYTES = 1 << 20
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)
_ALL = "*"
_PROGRAM = "from tests.crash.lab import nursery; nursery.main()"

_starting = threading.Lock()
_channel: socket.socket | None = None


class Forked:
    """A process of the nursery, with the part of Popen's interface that is used here."""

    def __init__(self, status: int, stderr: int) -> None:
        self._status = os.fdopen(status, "r")
        self.stderr = os.fdopen(stderr, "r", errors="backslashreplace")
        self.returncode: int | None = None
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; as Popen's."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"kvd {self.pid}", timeout or 0)
            self.returncode = int(self._status.readline() or -signal.SIGKILL)
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def fork(
    mutant: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    straces: Mapping[str, Sequence[str]],
) -> Forked:
    """Fork a kvd with a bug (`none` for none).

    Args:
        mutant: a name of mutant.py.
        argv: the flags of kvd.
        env: what is added to the environment.
        straces: arguments for a strace by the name of the thread to be traced, `*` for each; in
            them {thread} stands for its name.
    """
    status, status_of_child = os.pipe()
    stderr, stderr_of_child = os.pipe()
    request = {"mutant": mutant, "argv": [*argv], "env": {**env}, "straces": {**straces}}
    try:
        with _starting:
            fds = [stderr_of_child, status_of_child]
            socket.send_fds(_open_channel(), [json.dumps(request).encode()], fds)
    finally:
        os.close(status_of_child)
        os.close(stderr_of_child)
    return Forked(status, stderr)


def _open_channel() -> socket.socket:
    """Return the way to the nursery, which ends with this process."""
    global _channel
    if _channel is None:
        _channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            # From aside, so that nobody has to wait for it.
            command = [sys.executable, "-c", _PROGRAM, str(far.fileno())]
            subprocess.run(
                ["sh", "-c", 'exec "$@" &', "sh", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[far.fileno()],
                check=True,
            )
    return _channel


def main() -> None:
    """Fork what is asked for and tell how it ended, until the other side has gone."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    import kvd.server  # noqa: PLC0415, F401 -- what the forked ones need not read again
    from tests.crash.lab import mutant  # noqa: PLC0415, F401

    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    children: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([channel, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        if channel in ready:
            request, fds, _, _ = socket.recv_fds(channel, _REQUEST_BYTES, 2)
            if not request:
                break
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _become(json.loads(request), fds[0])
            os.close(fds[0])
            os.write(fds[1], f"{pid}\n".encode())
            children[pid] = fds[1]
        _reap(children)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _reap(children: dict[int, int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            pid, status = ended
            fd = children.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(fd, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os.close(fd)


def _become(request: dict[str, Any], stderr: int) -> None:
    """Be a kvd; never returns."""
    status = 70
    try:
        os.dup2(stderr, 2)
        os.closerange(3, 64)
        os.environ.update(request["env"])
        if request["straces"]:
            _trace(request["straces"])
        from tests.crash.lab import mutant  # noqa: PLC0415

        status = mutant.launch(request["mutant"], request["argv"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 -- what the interpreter would print at its end
        traceback.print_exc()
    finally:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(status)


def _trace(straces: dict[str, list[str]]) -> None:
    """Attach a strace to this thread and to those to come, where one is asked for."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
    run = threading.Thread.run

    def traced_run(self: threading.Thread) -> None:
        _attach(straces, self.name)
        run(self)

    threading.Thread.run = traced_run
    _attach(straces, "MainThread")


def _attach(straces: dict[str, list[str]], name: str) -> None:
    args = straces.get(name) or straces.get(_ALL)
    if args is None:
        return
    thread = threading.get_native_id()
    words = [word.replace("{thread}", name) for word in args]
    # A grandchild: the server must not find a child of which it knows nothing. It holds the
    # server's stderr open: whoever waits for the end of that waits for the whole trace.
    command = ["strace", "-qq", *words, "-p", str(thread)]
    subprocess.run(["sh", "-c", 'exec "$@" &', "sh", *command], check=True)
    end = time.monotonic() + 10
    while "TracerPid:\t0\n" in Path(f"/proc/self/task/{thread}/status").read_text():
        if time.monotonic() > end:
            raise RuntimeError("strace does not attach")
        time.sleep(0.001)
