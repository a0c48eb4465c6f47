"""A PostgreSQL as the engine of a trial: one server, with all the processes that it is."""

import contextlib
import os
import pwd
import re
import signal
import subprocess
from pathlib import Path

from tests.replicas.trials.network import Place
from tests.replicas.trials.processes import Process

PORT = 5432
USER = "postgres"
"""Of the system, because the server refuses to be root, and of the database."""
DATABASE = "postgres"
_CONFIGURATION = """
unix_socket_directories = ''
max_connections = 60
shared_buffers = 16MB
"""


def programs() -> Path:
    """Return the directory of the newest server's programs."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    assert found, "there is no PostgreSQL server here"
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))])


class Postgres(Process):
    """A server; what befalls it befalls all its processes."""

    def __init__(self, place: Place, root: Path) -> None:
        assert os.geteuid() == 0, "PostgreSQL is run as another user: that takes root"
        self._programs = programs()
        own = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--")
        super().__init__(
            "postgres", place, root / "postgres", [*own, str(self._programs / "postgres")]
        )
        for above in (root, root.parent):
            above.chmod(0o711)  # another user has to come through

    @property
    def url(self) -> str:
        return f"postgres://{self.place.address}:{PORT}/{DATABASE}"

    def credentials(self) -> list[str]:
        """Return kvd's flags for them; the server asks for no password, kvd wants to know one."""
        file = self.directory.with_suffix(".password")
        file.write_text("any\n")
        file.chmod(0o600)
        return ["--replicate-user", USER, "--replicate-password-file", str(file)]

    def start(self) -> None:
        """Start it, after making its directory where there is none."""
        if not self.directory.exists():
            self._make()
        super().start()

    def arguments(self) -> list[str]:
        """Return what names its directory on the command line."""
        return ["-D", str(self.directory)]

    async def serves(self) -> bool:
        """Return whether it accepts connections."""
        lines: list[str] = []
        with contextlib.suppress(OSError):
            lines = (self.directory / "postmaster.pid").read_text().split()
        return lines[-1:] == ["ready"] and lines[:1] == [str(self.pid)]

    def _make(self) -> None:
        self.directory.mkdir()
        os.chown(self.directory, *_ids())
        options = ("--username", USER, "--auth", "trust", "--no-sync", "--no-locale")
        subprocess.run(
            [*self._flags[:-1], self._programs / "initdb", *options, "-D", self.directory],
            check=True,
            capture_output=True,
            cwd="/",
        )
        configuration = f"listen_addresses = '{self.place.address}'\nport = {PORT}\n"
        with (self.directory / "postgresql.conf").open("a") as file:
            file.write(configuration + _CONFIGURATION)
        with (self.directory / "pg_hba.conf").open("a") as file:
            file.write("host all all all trust\n")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and to its processes, the server first."""
        if self.pid is None:
            return
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        if number == signal.SIGTERM:
            super().signal(signal.SIGINT)  # as `pg_ctl stop` does: it waits for no client
            return
        super().signal(signal.SIGSTOP)  # it begins no further ones
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)
        super().signal(number)


def _ids() -> tuple[int, int]:
    entry = pwd.getpwnam(USER)
    return entry.pw_uid, entry.pw_gid
