"""Servers with failpoints, and how they end."""

import contextlib
import http.client
import random
import signal
import time

from tests.support.server import Client, Server

SEGMENT = 64 * 1024
KILLED = -signal.SIGKILL
EXIT_CANT_CREATE, EXIT_IO, EXIT_TRY_AGAIN = 73, 74, 75
SMALL = ("--wal-segment-bytes", str(SEGMENT), "--snapshot-count", "30")
# What a client sees of a server that dies under it.
GONE = (OSError, http.client.HTTPException)
UNKNOWN = "outcome unknown"


def faulty(*faults: str) -> list[str]:
    return ["--enable-failpoints", *(f"--failpoint={fault}" for fault in faults)]


def start_or_die(server: Server, *flags: str) -> bool:
    """Start a server that may end before it listens; whether it listens."""
    try:
        server.start(*flags)
    except AssertionError:
        server.wait()
        return False
    return True


class Script:
    """A client that writes so that the server reaches every failpoint, and the answers to it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.values: dict[str, str] = {}
        self.doubt: tuple[str, str | None] | None = None
        self.index = 1

    def write(self, client: Client) -> None:
        """Write once. Without an answer, the possible outcome is in `doubt`."""
        key = f"/k{self.dice.randrange(20)}"
        if key in self.values and self.dice.random() < 0.2:
            self.doubt = (key, None)
            answer = client.delete(key)
        else:
            value = f"{self.index}-" + "v" * self.dice.choice((10, 1000, 4000))
            self.doubt = (key, value)
            answer = client.put(key, value)
        if answer.status == 500:
            assert UNKNOWN in answer.json["cause"]
            raise ConnectionError
        assert answer.status in (200, 201), answer.body
        assert answer.index > self.index
        self.index = answer.index
        self._apply()

    def write_until_dead(self, server: Server, *, limit_s: float = 60.0) -> None:
        client = server.client()
        end = time.monotonic() + limit_s
        with contextlib.suppress(*GONE):
            while time.monotonic() < end:
                self.write(client)

    def check(self, server: Server) -> None:
        """Compare with what the server holds; a write in doubt is settled by what is found."""
        answer = server.client().get("/")
        found = {node["key"]: node["value"] for node in answer.json["node"].get("nodes", ())}
        if self.doubt is not None and found != self.values:
            self._apply()
        self.doubt = None
        assert found == self.values
        assert self.index <= answer.index <= self.index + 1
        self.index = answer.index

    def _apply(self) -> None:
        assert self.doubt is not None
        (key, value), self.doubt = self.doubt, None
        if value is None:
            del self.values[key]
        else:
            self.values[key] = value


def ends_by_an_io_error(server: Server, script: Script, nth: int) -> None:
    script.write_until_dead(server)
    assert server.wait() == EXIT_IO, server.stderr
    assert "stopping at once" in server.stderr
    assert not (server.data_dir / "index" / "RUNNING").exists()
    assert len(script.values) <= nth
    server.start()
    assert "recovered" in server.stderr
    script.check(server)
    script.write(server.client())
    server.kill()
