"""Call traces of single requests: `scripts/trace METHOD PATH [VALUE]`.

A trace lists the functions of kvd and kvd.storage that a server enters for one request, indented
by depth, and ends with its counts:

    calls            functions entered
    files            files that these functions are in
    changes of file  calls into another file than the call before
    crossings        calls into the other of the two packages, kvd and storage

The request runs several times on a warm server in this process (`bench.cost.in_process`), and the
shortest trace is taken: the work of timers is in the others. What comes from libraries, asyncio
and built-in functions is left out, and so are list, set and dict comprehensions, which are calls
in Python 3.11 and no longer in 3.12.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.cost.in_process import Inside, in_memory, wait_for_syncs
from bench.load.servers import CHECKOUT
from bench.load.wire import is_complete, render
from kvd.storage import aio

if TYPE_CHECKING:
    from types import FrameType

KEYS = "/v2/keys/"
TARGET = {"changes of file": 35, "crossings": 12}
"""Upper bounds for a PUT of a key."""

GOLDEN = CHECKOUT / "tests" / "project" / "traces"
GOLDEN_REQUESTS = {"PUT": "PUT /v2/keys/a", "GET": "GET /v2/keys/a"}
"""The requests with a golden trace, by the name of its file."""

_RUNS_BEFORE = 6
_RUNS = 41
_SYNC_WAIT_S = 0.9
_VALUE = "x" * 100
_PRODUCT = f"{CHECKOUT / 'kvd'}/"
_STORAGE = "kvd/storage/"
_INLINED = ("<listcomp>", "<setcomp>", "<dictcomp>")


class Call(NamedTuple):
    """A function entered, by its file within the repository and its qualified name."""

    thread: str
    depth: int
    file: str
    name: str

    @property
    def is_storage(self) -> bool:
        """Whether the function belongs to the storage."""
        return self.file.startswith("storage/")


@dataclass(frozen=True, slots=True)
class Trace:
    """The calls of one request, in order."""

    request: str
    status: int
    calls: tuple[Call, ...]

    def counts(self) -> dict[str, int]:
        """Return the counts that the module's docstring explains."""
        pairs = list(pairwise(self.calls))
        return {
            "calls": len(self.calls),
            "files": len({call.file for call in self.calls}),
            "changes of file": sum(a.file != b.file for a, b in pairs),
            "crossings": sum(a.is_storage != b.is_storage for a, b in pairs),
        }

    def text(self) -> str:
        """Return the trace as `scripts/trace` prints it and as golden files hold it."""
        lines = [f"{self.request}: {self.status}"]
        thread = ""
        for call in self.calls:
            if call.thread != thread:
                thread = call.thread
                lines.append(f"thread {thread}")
            lines.append("  " * (call.depth + 1) + f"{call.name}  {call.file}")
        lines.append(", ".join(f"{count} {name}" for name, count in self.counts().items()))
        return "\n".join(lines) + "\n"


class _Recorder:
    """A profile function for the server's threads that notes calls while `is_on`."""

    def __init__(self) -> None:
        self.is_on = False
        self.calls: list[Call] = []
        self._files: dict[str, str | None] = {}
        self._local = threading.local()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if not self.is_on or event not in ("call", "return"):
            return
        code = frame.f_code
        file = self._file(code.co_filename)
        if file is None or code.co_name in _INLINED:
            return
        depth = getattr(self._local, "depth", 0)
        if event == "return":
            # A function that was entered before the recording began returns from depth 0.
            self._local.depth = max(depth - 1, 0)
            return
        self._local.depth = depth + 1
        thread = threading.current_thread().name
        self.calls.append(Call(thread, depth, file, code.co_qualname))

    def take(self) -> tuple[Call, ...]:
        """Return the calls noted so far and forget them."""
        taken = tuple(self.calls)
        self.calls.clear()
        return taken

    def _file(self, path: str) -> str | None:
        """Return the path within the repository, None for a file that is not traced."""
        if path not in self._files:
            within = path.removeprefix(f"{CHECKOUT}/") if path.startswith(_PRODUCT) else None
            if within is not None and within.startswith(_STORAGE):
                within = within.removeprefix("kvd/")
            self._files[path] = within
        return self._files[path]


def trace(method: str, path: str, value: str = _VALUE) -> Trace:
    """Return the shortest trace of a request on a warm server.

    The key of a GET and of a DELETE is written before each of their runs.
    """
    # On a busy machine, too, the loop waits for each sync to its end.
    aio.WAIT_S = aio.BRIEFLY_S = _SYNC_WAIT_S
    recorder = _Recorder()
    body = f"value={value}".encode() if method in ("PUT", "POST") else b""
    request = render(method, path, body)
    setup = path.startswith(KEYS) and method in ("GET", "DELETE") and "?" not in path
    traces = []
    threading.setprofile(recorder)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="kvd-trace-", dir=in_memory()) as directory,
            Inside(Path(directory, "data")) as kvd,
        ):
            for run in range(_RUNS_BEFORE + _RUNS):
                if setup and (run == 0 or method == "DELETE"):
                    kvd.request("PUT", path, f"value={value}".encode())
                kvd.settle()
                recorder.take()
                recorder.is_on = True
                kvd.sockets[0].sendall(request)
                status = int(kvd.receive_until(0, is_complete).split(b" ", 2)[1])
                kvd.settle()
                recorder.is_on = False
                if run >= _RUNS_BEFORE:
                    traces.append(Trace(f"{method} {path}", status, recorder.take()))
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    return min(traces, key=lambda one: len(one.calls))


def golden(name: str) -> Trace:
    """Return the trace of a request in `GOLDEN_REQUESTS` as it is now."""
    return trace(*GOLDEN_REQUESTS[name].split())


def renew() -> None:
    """Write the golden traces as they are now."""
    for name in GOLDEN_REQUESTS:
        (GOLDEN / f"{name}.txt").write_text(golden(name).text())


def main() -> int:
    """Print the trace of a request, or renew the golden ones."""
    parser = argparse.ArgumentParser(
        prog="scripts/trace",
        description="Print the calls inside kvd that one request makes, and their counts.",
    )
    parser.add_argument("method", nargs="?", metavar="METHOD")
    parser.add_argument("path", nargs="?", metavar="PATH", help="such as /v2/keys/a")
    parser.add_argument("value", nargs="?", metavar="VALUE", default=_VALUE)
    parser.add_argument(
        "--renew", action="store_true", help="write the golden traces in tests/project/traces"
    )
    options = parser.parse_args()
    wait_for_syncs()
    if options.renew:
        renew()
        return 0
    if options.path is None:
        parser.error("METHOD and PATH are missing")
    found = trace(options.method, options.path, options.value)
    print(found.text(), end="")
    if options.method == "PUT":
        print("target: " + ", ".join(f"at most {n} {name}" for name, n in TARGET.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
