"""A PostgreSQL of this machine, with a directory of its own."""

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import PATIENCE_S, free_port

USER = "admin"
DATABASE = "postgres"


def programs() -> Path:
    """The directory of the newest server's programs; without one, a skip."""
    found = [Path(path).parent for path in (shutil.which("initdb"),) if path]
    found += [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found:
        pytest.skip("there is no PostgreSQL server here")
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))])


def as_user() -> dict[str, Any]:
    """Arguments for a process of the server, which refuses to be root."""
    if os.geteuid():
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class Postgres:
    """A server, or one that was copied from another; `settings` are lines of its configuration."""

    def __init__(self, *settings: str) -> None:
        self._programs = programs()
        self._as_user = as_user()
        # Below the tests' own directories another user may not come.
        self._parent = tempfile.mkdtemp(prefix="kvd-postgres-")
        if self._as_user:
            os.chown(self._parent, self._as_user["user"], self._as_user["group"])
        self.directory = Path(self._parent) / "data"
        self.settings = (
            "autovacuum = off",
            "listen_addresses = '127.0.0.1'",
            "max_connections = 60",
            "shared_buffers = 16MB",
            "unix_socket_directories = ''",
            *settings,
        )
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> "Postgres":
        self.program(
            *("initdb", "--username", USER, "--auth", "trust", "--no-sync", "--no-locale"),
            *("--encoding", "UTF8", "--pgdata", str(self.directory)),
        )
        return self

    def copy(self, source: "Postgres") -> "Postgres":
        """Become a standby of a server that runs."""
        self.program(
            *("pg_basebackup", "--checkpoint", "fast", "--no-sync", "--write-recovery-conf"),
            *("--pgdata", str(self.directory)),
            *(
                "--dbname",
                f"host=127.0.0.1 port={source.port} user={USER} application_name=standby",
            ),
        )
        return self

    def own(self, path: Path, name: str) -> Path:
        """A copy of a file that the server may read, and nothing else may."""
        copy = Path(self._parent) / name
        shutil.copy(path, copy)
        copy.chmod(0o600)
        if self._as_user:
            os.chown(copy, self._as_user["user"], self._as_user["group"])
        return copy

    def start(self, *, wait: bool = True) -> "Postgres":
        (self.directory / "postgresql.auto.conf").open("a").close()
        lines = "\n".join((*self.settings, f"port = {self.port}"))
        (self.directory / "postgresql.conf").write_text(lines + "\n")
        with (Path(self._parent) / "log").open("ab") as output:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self.directory],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                start_new_session=True,
                **self._as_user,
            )
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Wait until it accepts connections."""
        deadline = time.monotonic() + PATIENCE_S
        pid_file = self.directory / "postmaster.pid"
        assert self._process is not None
        while True:
            lines = pid_file.read_text().split() if pid_file.exists() else []
            # One of a server that was killed may be left.
            if lines[:1] == [str(self._process.pid)] and lines[-1] in ("ready", "standby"):
                return
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.01)

    @property
    def log(self) -> str:
        return (Path(self._parent) / "log").read_text()

    def send(self, number: signal.Signals) -> list[int]:
        """To the server and all its processes, each of which leads a group of its own."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, number)  # first: it begins no further ones
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [child for child in map(int, children) if _kill(child, number)]

    def stop(self, number: signal.Signals = signal.SIGQUIT) -> None:
        """At once, as by SIGQUIT; or as by SIGKILL to all its processes."""
        process = self._process
        if process is None:
            return
        children = self.send(signal.SIGSTOP)
        for pid in (process.pid, *children):
            _kill(pid, number if number == signal.SIGKILL else signal.SIGCONT)
        process.send_signal(number)
        process.wait(PATIENCE_S)
        self._process = None
        # Another one starts when all have let go of the memory that they shared.
        while any(map(_is_alive, children)):
            time.sleep(0.005)

    def promote(self) -> None:
        self.program("pg_ctl", "promote", "-D", str(self.directory))

    def program(self, name: str, *arguments: str) -> None:
        ended = subprocess.run(
            [self._programs / name, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            **self._as_user,
        )
        assert ended.returncode == 0, ended.stderr

    def remove_data(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._parent)


def _kill(pid: int, number: signal.Signals) -> bool:
    """Send a signal; whether there was such a process, as one that has just ended is none."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
