"""The servers under load: kvd of this checkout, and etcd 3.4 from the PATH; data on a real disk.

A server lives in a scratch directory of its own that goes with it. It is ended in every case: by
`stop`, which the context manager calls, and by the kernel when this process dies first (`setpriv
--pdeathsig`, where there is one).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from bench.load.wire import Client, LoadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from bench.load.wire import Address

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SCRATCH = Path("/var/tmp")
"""Where /tmp may be memory, /var/tmp keeps its files over a reboot (FHS 5.15)."""
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
LISTENING = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")
MEMORY_FILE_SYSTEMS = {"tmpfs", "ramfs"}
HOST = "127.0.0.1"


class Server:
    """One server process and its data directory.

    `command` renders the command line from a client port and the data directory; port 0 stands for
    "any", and such a server tells on stderr where it listens.
    """

    def __init__(
        self, name: str, command: Callable[[int, Path], list[str]], scratch: Path, *, port: int = 0
    ) -> None:
        self.name = name
        self.command = command
        self.directory = Path(tempfile.mkdtemp(prefix=f"kvd-bench-{name}-", dir=scratch))
        self.port = port
        self.process: subprocess.Popen[bytes] | None = None
        self.lines: list[tuple[int, bytes]] = []
        """What it has said of snapshots, and when (`time.perf_counter_ns`)."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def data(self) -> Path:
        """The data directory, which the server makes where it is not there yet."""
        return self.directory / "data"

    @property
    def address(self) -> Address:
        """The address for clients."""
        return HOST, self.port

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The process; a bug of the caller when there is none."""
        if self.process is None:
            raise LoadError(f"{self.name} is not running")
        return self.process

    def start(self, *flags: str) -> float:
        """Start the process on its data directory and wait until it answers a read.

        Args:
            flags: what this start adds to the command line.

        Returns:
            Seconds from before the process was made to its first answer on /v2/keys.

        Raises:
            LoadError: it ended, or did not answer in time; the message holds what it said.
        """
        started_s = time.monotonic()
        self.process = subprocess.Popen(
            die_with_parent() + self.command(self.port, self.data) + list(flags),
            cwd=CHECKOUT,
            env={k: v for k, v in os.environ.items() if not k.startswith("ETCD")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        listening = threading.Event()
        assert self.process.stderr is not None
        threading.Thread(
            target=self.keep_log, args=(self.process.stderr, listening), daemon=True
        ).start()
        if not self.port and not (listening.wait(START_TIMEOUT_S) and self.port):
            raise LoadError(f"{self.name} did not say where it listens:\n{self.log()}")
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() - started_s > START_TIMEOUT_S:
                raise LoadError(f"{self.name} did not start:\n{self.log()}")
            time.sleep(0.0005)  # a refused connection has no event to wait for
        return time.monotonic() - started_s

    def keep_log(self, stderr: IO[bytes], listening: threading.Event) -> None:
        """Copy stderr to the log file and take the port from it; runs in a thread of its own."""
        with stderr, (self.directory / "log").open("ab") as log:
            for line in stderr:
                log.write(line)
                log.flush()
                if b"snapshot" in line:
                    self.lines.append((time.perf_counter_ns(), line))
                lines = LISTENING.search(line)
                if lines:
                    self.port = int(lines[1])
                    listening.set()
        listening.set()  # the process has ended: no need to wait longer

    def log(self) -> str:
        """Return the last 20 lines that the server wrote to stderr."""
        path = self.directory / "log"
        if not path.exists():
            return ""
        return "\n".join(path.read_text(errors="replace").splitlines()[-20:])

    def answers(self) -> bool:
        """Whether it answers a read of the root directory."""
        try:
            with Client(self.address) as client:
                return client.request("GET", "/v2/keys/").ok
        except (OSError, LoadError):
            return False

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would; the data stays for the next `start`."""
        self.running.kill()
        self.running.wait()

    def stop(self) -> None:
        """End the process, politely first, and remove the scratch directory."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def cpu_s(self) -> float:
        """Return the user and system time that the process has used so far."""
        stat = Path(f"/proc/{self.running.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def anonymous_bytes(self) -> int:
        """Return the process's anonymous resident memory: what is its own, and not the files'."""
        status = Path(f"/proc/{self.running.pid}/status").read_text()
        found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
        if found is None:
            raise LoadError("this system does not tell a process's anonymous memory (RssAnon)")
        return int(found[1]) * 1024


def kvd(scratch: Path) -> Server:
    """Return this checkout's server, not started yet, on a free port."""
    return Server("kvd", kvd_command, scratch)


def kvd_command(port: int, data: Path) -> list[str]:
    """Return the command line of kvd."""
    return [
        sys.executable, "-m", "kvd",
        "--data-dir", str(data),
        "--listen-client-urls", f"http://{HOST}:{port}",
    ]  # fmt: skip


def etcd(scratch: Path) -> Server:
    """Return the installed etcd with the v2 API, not started yet.

    Raises:
        LoadError: `why_no_etcd` says why.
    """
    reason = why_no_etcd()
    if reason:
        raise LoadError(reason)
    return Server("etcd", partial(etcd_command, free_port()), scratch, port=free_port())


def etcd_command(peer_port: int, port: int, data: Path) -> list[str]:
    """Return the command line of a cluster of one etcd."""
    client, peer = f"http://{HOST}:{port}", f"http://{HOST}:{peer_port}"
    return [
        "etcd", "--enable-v2=true", "--name", "bench", "--data-dir", str(data),
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
        "--initial-cluster", f"bench={peer}",
    ]  # fmt: skip


def why_no_etcd() -> str:
    """Return why there is no etcd to compare with, or nothing when there is one."""
    version = etcd_version()
    if not version:
        return "no etcd on the PATH (Debian: apt-get install etcd-server)"
    if not version.startswith("3.4."):
        return f"etcd {version} is on the PATH; the comparison is with 3.4, the last with v2"
    return ""


def etcd_version() -> str:
    """Return the installed etcd's version, or nothing when there is none."""
    if not shutil.which("etcd"):
        return ""
    said = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split("\n")[0].rpartition(" ")[2]


def free_port() -> int:
    """Return a port that was free just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def die_with_parent() -> list[str]:
    """Return the prefix of a command that the kernel ends together with this process."""
    return ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds a directory, as the kernel names it."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            return rest.split()[0]
    return "unknown"


def disk_directory(directory: Path) -> Path:
    """Check that data in `directory` costs what data on a disk costs.

    Raises:
        LoadError: it is in memory, where fdatasync is free and every figure would flatter.
    """
    kind = file_system(directory)
    if kind in MEMORY_FILE_SYSTEMS:
        raise LoadError(f"{directory} is {kind}: name a directory on a disk")
    return directory
