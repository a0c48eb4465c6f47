"""The load of a soak test: lanes that read, write and watch, and check each answer."""

from __future__ import annotations

import argparse
import heapq
import json
import random
import re
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from bench.load.closed_loop import percentile
from bench.load.wire import is_complete, render

_EVENT = re.compile(rb'"value":"(\d+)","modifiedIndex":(\d+)')
_VALUE = re.compile(rb'"value":"([^"]*)"')
_KINDS = ("poll", "recursive", "stream")
_READS_PER_WRITE = 9
REPORT_S = 10.0
# After the last request is due: how long answers and events may still take.
_DRAIN_S = 30.0


@dataclass(slots=True)
class Lane:
    """One connection: its kind, the answer it waits for, the events it must get."""

    socket: socket.socket
    key: str
    kind: str
    received: bytearray = field(default_factory=bytearray)
    due: float = 0.0
    asked: str = ""
    count: int = 0
    """Requests that were answered; of a watcher, the last number received."""
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
        """Open all connections and all watches."""
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
        end, reported = now + self.options.seconds, now + REPORT_S
        while (now := time.monotonic()) < end:
            self.ask_what_is_due(now)
            wait = min(self.schedule[0][0] if self.schedule else end, end) - time.monotonic()
            self.read(max(0.0, wait))
            if now > reported:
                reported += REPORT_S
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
        """Whether every request is answered and every watcher has every event."""
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
        """Check the complete events; a long poll is sent again."""
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
        """Check that an event is the next one, and note its delay."""
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
