"""The memory of a server, and the connections that it has refused."""

import contextlib
import resource
import threading
from pathlib import Path

import pytest

from kvd.http.receiving import Receiving
from tests.monitoring.test_metrics import scrape
from tests.support.raw import Raw
from tests.support.server import Answer, Client, Server

MIB = 1 << 20


def rejected(client: Client, reason: str) -> float:
    return scrape(client)[f'kvd_rejected_requests_total{{reason="{reason}"}}']


def resident_bytes(server: Server) -> int:
    return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def anonymous_bytes(server: Server) -> int:
    """Its resident memory without mapped files, which the system drops when it lacks room."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


class Most:
    """The most anonymous memory that a server has while this is entered, seen every few ms."""

    def __init__(self, server: Server) -> None:
        self.bytes = self.before = anonymous_bytes(server)
        self._server = server
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Most":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ends.wait(0.005):
            self.bytes = max(self.bytes, anonymous_bytes(self._server))


def peak_bytes(server: Server) -> int:
    """The most that it has had resident so far."""
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def assert_refused(answer: Answer, code: int, cause: str) -> None:
    assert answer.body.startswith(b"{"), answer
    assert (answer.json["errorCode"], answer.json["cause"], answer.json["index"]) == (
        code,
        cause,
        0,
    )
    assert answer.status == (500 if code == 300 else 400)


def launch(loop: str) -> tuple[str, ...]:
    """The command of a server on an event loop, whatever is installed."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
        return ("-m", "kvd")
    code = (
        "import sys; sys.modules['uvloop'] = None; from kvd.__main__ import main; sys.exit(main())"
    )
    return ("-c", code)


def send_what_is_taken(raw: Raw, data: bytes) -> None:
    with contextlib.suppress(OSError):
        raw.send(data)


class Upload:
    """A request that comes."""

    def __init__(self, receiving: Receiving, log: list[tuple[str, str]], name: str) -> None:
        self.receiving = receiving
        self.log = log
        self.name = name
        self.held_bytes = 0
        self.is_receiving = True

    def take(self, size: int) -> bool:
        self.held_bytes += size
        return self.receiving.take(self, size)

    def go_on(self) -> None:
        self.log.append(("goes on", self.name))

    def give_up(self) -> None:
        self.log.append(("is given up", self.name))
        size, self.held_bytes = self.held_bytes, 0
        self.receiving.give_back(size)
