"""Ten thousand connections for minutes, half of them watchers: errors, memory over time, p99.

    .venv/bin/python -m bench.soak                          ten thousand for five minutes
    .venv/bin/python -m bench.soak --connections 1000 --seconds 30

The load comes from a process of its own (`bench.soak drive`), so that what it costs is
not taken from the server's interpreter, nor counted as its memory. It is an open load: so many
requests a second are due, however long the answers take, and their times count from when they
were due.

Half of the connections ask: nine reads of a key of their own, then a write of it, and each answer
must hold what was written last. Some of them publish instead: they write numbers that grow to a key
that others watch. The other half watches those keys: a third each long polls, recursive long polls
and streams. Every watcher must be told every number once, in order. Anything else is an error, and
ends the run with status 1.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import re
import resource
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import servers
from bench.load.closed_loop import percentile
from bench.load.wire import Client, is_complete, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_EVENT = re.compile(rb'"value":"(\d+)","modifiedIndex":(\d+)')
_VALUE = re.compile(rb'"value":"([^"]*)"')
_KINDS = ("poll", "recursive", "stream")
_READS_PER_WRITE = 9
_REPORT_S = 10.0
# After the last request is due: how long answers and events may still take.
_DRAIN_S = 30.0


@dataclass(slots=True)
class Lane:
    """One connection: who it is, what it waits for, what it must be told."""

    socket: socket.socket
    key: str
    kind: str
    received: bytearray = field(default_factory=bytearray)
    due: float = 0.0
    asked: str = ""
    count: int = 0
    """Requests that were answered; of a watcher, the last number it was told."""
    value: bytes = b""
    index: int = 1
    backlog: int = 0
    """Requests that were due while one was under way."""


class Load:
    """All connections of the driver, and what they have seen."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dice = random.Random(options.seed)
        self.epoll = select.epoll()
        self.lanes: dict[int, Lane] = {}
        self.schedule: list[tuple[float, int]] = []
        self.errors: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {"GET": [], "PUT": [], "event": []}
        self.published: dict[str, dict[int, float]] = {}
        self.open = 0

    def connect(self) -> None:
        """Open all connections, and let the watchers stand."""
        half = self.options.connections // 2
        keys = [f"/soak/watched/{n}/key" for n in range(max(1, half // 50))]
        self.published = {key: {} for key in keys}
        for n in range(half):
            publishes = n < len(keys)
            kind, key = ("publish", keys[n]) if publishes else ("ask", f"/soak/own/{n}")
            self.add(Lane(self.socket(), key, kind))
        for n in range(half):
            lane = Lane(self.socket(), keys[n % len(keys)], _KINDS[n % 3])
            self.add(lane)
            self.watch(lane)

    def socket(self) -> socket.socket:
        """Return a new connection."""
        made = socket.create_connection((self.options.host, self.options.port), timeout=60)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def add(self, lane: Lane) -> None:
        """Look after a connection from now on."""
        self.lanes[lane.socket.fileno()] = lane
        self.epoll.register(lane.socket.fileno(), select.EPOLLIN)
        self.open += 1

    def watch(self, lane: Lane) -> None:
        """Ask for what comes behind the last event that was seen."""
        query = f"?wait=true&waitIndex={lane.index + 1}"
        path = lane.key
        if lane.kind == "recursive":
            path, query = path.rpartition("/")[0], query + "&recursive=true"
        elif lane.kind == "stream":
            query += "&stream=true"
        lane.received.clear()
        lane.socket.sendall(render("GET", "/v2/keys" + path + query))

    def run(self) -> None:
        """Ask and listen for as long as it was asked for, then wait for what is under way."""
        asking = [fd for fd, lane in self.lanes.items() if lane.kind in ("ask", "publish")]
        self.mean_s = len(asking) / self.options.rate
        now = time.monotonic()
        for fd in asking:
            heapq.heappush(self.schedule, (now + self.dice.random() * self.mean_s, fd))
        end, told = now + self.options.seconds, now + _REPORT_S
        while (now := time.monotonic()) < end:
            self.ask_what_is_due(now)
            wait = min(self.schedule[0][0] if self.schedule else end, end) - time.monotonic()
            self.read(max(0.0, wait))
            if now > told:
                told += _REPORT_S
                self.report(final=False)
        self.schedule.clear()
        end = time.monotonic() + _DRAIN_S
        while time.monotonic() < end and not self.is_done():
            self.read(0.1)
        for lane in self.lanes.values():
            if lane.asked:
                self.errors["not answered"] += 1
            elif lane.kind in _KINDS and lane.count != self.last_of(lane.key):
                self.errors["watcher not told all"] += 1

    def last_of(self, key: str) -> int:
        """Return the last number that was written to a watched key."""
        return max(self.published[key], default=0)

    def is_done(self) -> bool:
        """Whether everything is answered and every watcher has been told everything."""
        return all(
            lane.count == self.last_of(lane.key) if lane.kind in _KINDS else not lane.asked
            for lane in self.lanes.values()
        )

    def ask_what_is_due(self, now: float) -> None:
        """Send the requests whose time has come; one at a time on each connection."""
        while self.schedule and self.schedule[0][0] <= now:
            due, fd = heapq.heappop(self.schedule)
            lane = self.lanes.get(fd)
            if lane is None:
                continue
            heapq.heappush(self.schedule, (due + self.dice.expovariate(1 / self.mean_s), fd))
            if lane.asked:
                lane.backlog += 1
            else:
                self.ask(lane, due)

    def ask(self, lane: Lane, due: float) -> None:
        """Send the next request of a connection."""
        lane.due = due
        writes = lane.kind == "publish" or lane.count % (_READS_PER_WRITE + 1) == 0
        lane.asked = "PUT" if writes else "GET"
        if writes:
            lane.value = b"%d" % (lane.count + 1)
        if lane.kind == "publish":
            self.published[lane.key][lane.count + 1] = time.monotonic()
        body = b"value=" + lane.value if writes else b""
        lane.socket.sendall(render(lane.asked, "/v2/keys" + lane.key, body))

    def read(self, wait_s: float) -> None:
        """Take what has come."""
        for fd, _ in self.epoll.poll(wait_s):
            lane = self.lanes[fd]
            try:
                piece = lane.socket.recv(1 << 16)
            except OSError as error:
                piece = b""
                self.errors[type(error).__name__] += 1
            if not piece:
                self.lose(fd, lane)
                continue
            lane.received += piece
            if lane.kind in _KINDS:
                self.take_events(lane)
            elif is_complete(lane.received):
                self.take_answer(lane)

    def lose(self, fd: int, lane: Lane) -> None:
        """Count a connection that the server has closed: none may be."""
        self.errors[f"{lane.kind} closed by the server"] += 1
        self.epoll.unregister(fd)
        lane.socket.close()
        del self.lanes[fd]
        self.open -= 1

    def take_answer(self, lane: Lane) -> None:
        """Check an answer, and send what has become due meanwhile."""
        now = time.monotonic()
        answer = bytes(lane.received)
        lane.received.clear()
        self.times[lane.asked].append(now - lane.due)
        status = answer[9:12]
        found = _VALUE.search(answer)
        if status not in (b"200", b"201"):
            self.errors[f"{lane.asked} {status.decode()}"] += 1
        elif found is None or found[1] != lane.value:
            self.errors[f"{lane.asked}: wrong value"] += 1
        lane.count += 1
        lane.asked = ""
        if lane.backlog:
            lane.backlog -= 1
            self.ask(lane, now)

    def take_events(self, lane: Lane) -> None:
        """Check the events that have come whole; a long poll is asked anew."""
        if not lane.received.startswith(b"HTTP/1.1 200") and lane.kind != "stream":
            self.errors[f"watch {bytes(lane.received[9:12]).decode(errors='replace')}"] += 1
        while (end := lane.received.find(b"}\n\r\n")) >= 0:
            event = bytes(lane.received[: end + 4])
            if lane.kind != "stream":
                if not lane.received.endswith(b"0\r\n\r\n"):
                    return
                self.take_event(lane, event)
                self.watch(lane)
                return
            del lane.received[: end + 4]
            self.take_event(lane, event)

    def take_event(self, lane: Lane, event: bytes) -> None:
        """Check that an event is the next one, and note how long it took to be told."""
        found = _EVENT.search(event)
        number = int(found[1]) if found else 0
        if number != lane.count + 1:
            self.errors["event twice or lost"] += 1
        lane.count = number
        if found:
            lane.index = int(found[2])
        published = self.published[lane.key].get(number)
        if published is not None:
            self.times["event"].append(time.monotonic() - published)

    def report(self, *, final: bool) -> None:
        """Tell the parent how it goes, as one line of JSON."""
        said = {
            "final": final,
            "open": self.open,
            "errors": dict(self.errors),
            "counts": {name: len(times) for name, times in self.times.items()},
        }
        if final:
            said["ms"] = {
                name: {
                    "p50": percentile(sorted(times), 50) * 1e3,
                    "p99": percentile(sorted(times), 99) * 1e3,
                    "max": max(times) * 1e3,
                }
                for name, times in self.times.items()
                if times
            }
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


def drive(options: argparse.Namespace) -> int:
    """Be the process that makes the load."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = Load(options)
    load.connect()
    load.report(final=False)
    load.run()
    load.report(final=True)
    return 0


def soak(options: argparse.Namespace) -> int:
    """Run a server, load it, and print what came of it; 1 if there was any error."""
    scratch = servers.disk_directory(Path(options.dir))
    server = servers.kvd(scratch)
    server.start("--event-history-limit", "1000000", *options.flag)
    try:
        errors = watch_over(server, options)
    finally:
        server.stop()
    return 1 if errors else 0


def watch_over(server: servers.Server, options: argparse.Namespace) -> dict[str, int]:
    """Start the driver, and tell how it and the server's memory are; return the errors."""
    arguments = ["--host", servers.HOST, "--port", str(server.port)]
    for name in ("connections", "seconds", "rate", "seed"):
        arguments += [f"--{name}", str(getattr(options, name))]
    print(f"idle: {server.anonymous_bytes() / 1e6:.1f} MB")
    started = time.monotonic()
    memory: list[tuple[float, float]] = []
    with subprocess.Popen(
        [*servers.die_with_parent(), sys.executable, "-m", "bench.soak", "drive", *arguments],
        cwd=servers.CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        said: dict = {}
        for said in lines(driver):
            at, used = time.monotonic() - started, server.anonymous_bytes() / 1e6
            memory.append((at, used))
            print(
                f"{at:6.0f} s  {used:7.1f} MB  {server.cpu_s():7.1f} s CPU  {said['open']} open  "
                f"{said['counts']}  {said['errors'] or 'no error'}"
            )
    for name, ms in said.get("ms", {}).items():
        figures = "  ".join(f"{key} {value:.1f} ms" for key, value in ms.items())
        print(f"{name:>6}: {said['counts'][name]:9} answered  {figures}")
    print(f"  disk: {syncs(server)}")
    warnings = [line for line in server.log().splitlines() if " WARNING " in line]
    print("\n".join(["warnings of the server:", *warnings] if warnings else ["no warning"]))
    errors: dict[str, int] = said.get("errors", {})
    if driver.returncode or not said.get("final"):
        errors = errors | {"the driver ended early": 1}
    loaded = [used for _, used in memory[1:]] or [0.0]
    print(f"memory under load: {loaded[0]:.1f} MB at first, {max(loaded):.1f} at most, "
          f"{loaded[-1]:.1f} at the end; errors: {errors or 'none'}")  # fmt: skip
    return errors


def syncs(server: servers.Server) -> str:
    """Return how long the server's syncs of its log took, as it has measured them."""
    with Client(server.address) as client:
        text = client.request("GET", "/metrics").body.decode()
    name = "kvd_wal_sync_duration_seconds"
    found = dict(re.findall(rf"^{name}_(sum|count) (\S+)$", text, re.MULTILINE))
    count, total_s = float(found["count"]), float(found["sum"])
    buckets = re.findall(rf'^{name}_bucket{{le="([^"]+)"}} (\S+)$', text, re.MULTILINE)
    p99 = next(bound for bound, below in buckets if float(below) >= 0.99 * count)
    return (
        f"{count:.0f} syncs of the log, {total_s / count * 1e3:.1f} ms on average, p99 <= {p99} s"
    )


def lines(driver: subprocess.Popen[str]) -> Iterator[dict]:
    """Yield what the driver says."""
    assert driver.stdout is not None
    for line in driver.stdout:
        yield json.loads(line)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("role", nargs="?", choices=("soak", "drive"), default="soak")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=2000.0, help="requests a second, in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dir", default="/var/tmp", help="where the server's data goes")
    parser.add_argument("--flag", action="append", default=[], help="a flag of kvd")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the command."""
    options = parse(sys.argv[1:])
    return drive(options) if options.role == "drive" else soak(options)


if __name__ == "__main__":
    sys.exit(main())
