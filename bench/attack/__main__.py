"""Attacks of all kinds at once, beside fifty honest clients that must not notice.

    .venv/bin/python -m bench.attack                              ten minutes
    .venv/bin/python -m bench.attack --seconds 30 --only pipelining silent

A kvd of this checkout is started on 127.0.0.1, users are asked for, and each kind of attack runs in
a process of its own, with less precedence than the rest. The honest clients are twenty readers,
fifteen writers, fourteen watchers and one that holds a lease of two seconds as Patroni does, which
it refreshes twice a second. Printed are the times and failures of their requests, lost leases, and
the most memory that the server had. The exit status is 1 if a target was missed.

Attacks are bounded: so many connections each, to this machine alone.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.load import servers
from bench.load.closed_loop import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.load.wire import Address

ROOT, HONEST, CLUMSY = "root:rootpw", "honest:right", "clumsy:known"
FORM = "application/x-www-form-urlencoded"
GET_P99_MS, PUT_P99_MS, RSS_MB = 50.0, 250.0, 700.0
_READERS, _WRITERS, _WATCHERS = 20, 15, 14
_PACE_S = 0.1
_LEASE_S = 2
_SILENT = 1100
_CONTROL = b"%01" * (3 << 20)


def basic(user: str) -> str:
    """Return the value of an Authorization header."""
    return "Basic " + base64.b64encode(user.encode()).decode()


def head(method: str, target: str, *lines: str, user: str = CLUMSY) -> bytes:
    """Return the head of a request, without credentials for no user."""
    told = [f"Authorization: {basic(user)}"] if user else []
    lines = (f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *told, *lines)
    return "\r\n".join([*lines, "", ""]).encode()


def put(target: str, body: bytes, user: str = CLUMSY) -> bytes:
    """Return a write."""
    return (
        head("PUT", target, f"Content-Type: {FORM}", f"Content-Length: {len(body)}", user=user)
        + body
    )


class Target(NamedTuple):
    """What is attacked, and until when (monotonic)."""

    address: Address
    end: float

    @property
    def goes_on(self) -> bool:
        """Whether there is time left."""
        return time.monotonic() < self.end

    def connect(self) -> socket.socket:
        """Return a connection that never waits for long."""
        made = socket.create_connection(self.address, timeout=5)
        made.settimeout(2)
        return made


def flood(target: Target, requests: Sequence[bytes], *, pause_s: float = 0.0) -> None:
    """Send streams of bytes, each on its connection again and again, and read what comes back."""
    lanes: dict[int, tuple[socket.socket, bytes]] = {}
    sent: dict[int, int] = {}
    poll = select.epoll()

    def add(request: bytes) -> None:
        with suppress(OSError):
            made = target.connect()
            made.setblocking(False)
            lanes[made.fileno()], sent[made.fileno()] = (made, request), 0
            poll.register(made, select.EPOLLIN | select.EPOLLOUT)

    for request in requests:
        add(request)
    while target.goes_on:
        for number, ready in poll.poll(0.1):
            client, request = lanes[number]
            try:
                if ready & select.EPOLLIN and not client.recv(1 << 20):
                    raise ConnectionError
                if ready & select.EPOLLOUT:
                    at = sent[number]
                    sent[number] = (at + client.send(request[at : at + 65536])) % len(request)
            except BlockingIOError:
                continue
            except OSError:
                del lanes[number]
                client.close()
                add(request)
        time.sleep(pause_s or (0.0 if lanes else 0.1))


def hold(target: Target, first: bytes, connections: int, more: bytes, every_s: float) -> None:
    """Keep connections that have sent the first bytes, and send some more now and then."""
    clients: list[socket.socket] = []
    while target.goes_on:
        with suppress(OSError):
            while len(clients) < connections and target.goes_on:
                made = target.connect()
                clients.append(made)
                made.sendall(first)
                made.setblocking(False)
        alive = []
        for client in clients:
            try:
                if more:
                    client.send(more)
                elif not client.recv(1 << 16):
                    continue
                alive.append(client)
            except BlockingIOError:
                alive.append(client)
            except OSError:
                client.close()
        clients = alive
        time.sleep(every_s)


def pipelining(target: Target) -> None:
    """1: sixty-four connections that pipeline."""
    reads = head("GET", "/v2/keys/honest/0") * 500
    flood(target, [reads] * 40 + [put("/v2/keys/clumsy/p", b"value=1") * 500] * 16
          + [head("GET", "/version", user="") * 500] * 8)  # fmt: skip


def reading(target: Target) -> None:
    """2: sixty-four that read without a pause."""
    flood(target, [head("GET", "/v2/keys/honest/0")] * 64)


def forms(target: Target) -> None:
    """3: forms of very many parameters, and bodies of JSON, with and without a user."""
    form = b"+&" * (5 << 20)
    json_body = b"[" * (5 << 20)
    flood(target, [
        put("/v2/keys/clumsy/form", form, user=""), put("/v2/keys/clumsy/form", form),
        head("PUT", "/v2/auth/users/x", f"Content-Length: {len(json_body)}") + json_body,
    ], pause_s=0.2)  # fmt: skip


def dribbling(target: Target) -> None:
    """4: heads, chunks and bodies that come byte by byte."""
    begun = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * (60 << 10)
    hold(target, begun, 400, b"a", 0.1)


def expiring(target: Target) -> None:
    """5: very many keys whose time ends in the same second."""
    for turn in count():
        if not target.goes_on:
            return
        ends = time.monotonic() + 10
        with suppress(OSError), target.connect() as client:
            client.settimeout(10)
            for key in range(20_000):
                left = int(ends - time.monotonic())
                if left < 1 or not target.goes_on:
                    break
                client.sendall(
                    put(f"/v2/keys/clumsy/e/{turn}-{key}", f"value=1&ttl={left}".encode())
                )
                client.recv(65536)
        time.sleep(1)


def listing(target: Target) -> None:
    """6: deep and large trees, listed."""
    with suppress(OSError), target.connect() as client:
        for number in range(8):
            path = f"/v2/keys/clumsy/deep{number}" + "/d" * 2000
            client.sendall(put(path, b"value=1"))
            client.recv(65536)
    flood(target, [head("GET", "/v2/keys/clumsy?recursive=true")] * 4, pause_s=0.1)


def unread(target: Target) -> None:
    """7: large writes whose answers nobody reads."""
    write = put("/v2/keys/clumsy/large", b"value=" + _CONTROL)
    while target.goes_on:
        with ExitStack() as stack, suppress(OSError):
            for _ in range(8):
                stack.enter_context(target.connect()).sendall(write)
            time.sleep(5)
        time.sleep(1)


def slow(target: Target) -> None:
    """8: readers of a large answer that take their time."""
    with suppress(OSError), target.connect() as client:
        client.sendall(put("/v2/keys/clumsy/wide", b"value=" + b"v" * (4 << 20)))
        client.recv(65536)
    request = head("GET", "/v2/keys/clumsy/wide")
    clients: list[socket.socket] = []
    while target.goes_on:
        with suppress(OSError):
            while len(clients) < 30:
                made = target.connect()
                made.sendall(request)
                clients.append(made)
        for client in list(clients):
            try:
                client.settimeout(0.01)
                if not client.recv(1024):
                    raise ConnectionError
            except TimeoutError:
                continue
            except OSError:
                clients.remove(client)
                client.close()
        time.sleep(0.1)


def bodies(target: Target) -> None:
    """9: bodies that do not end, of nobody."""
    size = 10 << 20
    begun = head(
        "PUT", "/v2/keys/clumsy/b", f"Content-Type: {FORM}", f"Content-Length: {size}", user=""
    )
    hold(target, begun + b"v" * (1 << 20), 26, b"v" * 65536, 0.5)


def caches(target: Target) -> None:
    """10: header blocks, users and paths that are all different, and large."""
    numbers = count()

    def requests() -> bytes:
        number = next(numbers)
        filler = "x" * 3500
        return (
            head("GET", "/v2/keys/honest/0", f"X-{number}: {filler}")
            + head("GET", "/v2/keys/honest/0", user=f"nobody{number}{filler}:x")
            + head("GET", f"/v2/keys/clumsy/{number}{filler * 10}")
        )

    while target.goes_on:
        with suppress(OSError), target.connect() as client:
            for _ in range(100):
                client.sendall(requests())
                client.recv(65536)
                time.sleep(0.01)


def silent(target: Target) -> None:
    """11: very many connections that say nothing."""
    hold(target, b"", _SILENT, b"", 1.0)


def guessing(target: Target) -> None:
    """12: passwords of a user who works, and of some who do not exist."""
    guesses = [
        head("GET", "/v2/keys/honest/0", "Connection: close", user=f"{name}:guess{n}")
        for n in range(100)
        for name in ("honest", f"other{n}")
    ]
    flood(target, guesses, pause_s=0.05)


ATTACKS: dict[str, Callable[[Target], None]] = {
    attack.__name__: attack
    for attack in (
        pipelining, reading, forms, dribbling, expiring, listing, unread, slow, bodies, caches,
        silent, guessing,
    )
}  # fmt: skip


class Honest:
    """The honest clients, and what they have seen."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.times: dict[str, list[float]] = {"GET": [], "PUT": [], "event": []}
        self.failures: Counter[str] = Counter()
        self.leases_lost = 0
        self._written: dict[tuple[str, str], float] = {}

    def run(self) -> None:
        """Work until the time is over."""
        work: list[tuple[Callable[[int], None], int]] = [
            *((self._read, n) for n in range(_READERS)),
            *((self._write, n) for n in range(_WRITERS)),
            *((self._watch, n) for n in range(_WATCHERS)),
            (self._lease, 0),
        ]
        threads = [threading.Thread(target=part, args=(n,)) for part, n in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(
        self, client: HTTPConnection, method: str, path: str, form: str = ""
    ) -> tuple[int, bytes]:
        """Ask once; what fails is counted, and its status is 0."""
        headers = {"Authorization": basic(HONEST)} | ({"Content-Type": FORM} if form else {})
        began = time.monotonic()
        try:
            client.request(method, "/v2/keys" + path, form or None, headers)
            answer = client.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, HTTPException) as error:
            client.close()
            if "wait=" in path and not self.target.goes_on:
                return 0, b""  # nobody writes any more
            self.failures[f"{method}: {type(error).__name__}"] += 1
            return 0, b""
        if "wait=" not in path:
            self.times[method].append(time.monotonic() - began)
        if status not in (200, 201):
            self.failures[f"{method}: {status} {body[:60]!r}"] += 1
        return status, body

    def _client(self) -> HTTPConnection:
        return HTTPConnection(*self.target.address, timeout=10)

    def _read(self, number: int) -> None:
        client = self._client()
        while self.target.goes_on:
            self._ask(client, "GET", f"/honest/{number % _WRITERS}")
            time.sleep(_PACE_S)

    def _write(self, number: int) -> None:
        client = self._client()
        path = f"/honest/{number}"
        for value in count(1):
            if not self.target.goes_on:
                return
            self._written[path, str(value)] = time.monotonic()
            self._ask(client, "PUT", path, f"value={value}")
            time.sleep(_PACE_S)

    def _watch(self, number: int) -> None:
        client = self._client()
        path, index, last = f"/honest/{number}", 0, 0
        while self.target.goes_on:
            since = f"&waitIndex={index + 1}" if index else ""
            status, body = self._ask(client, "GET", f"{path}?wait=true{since}")
            if status != 200 or not body:
                continue
            node = json.loads(body)["node"]
            index = node["modifiedIndex"]
            if last and int(node["value"]) != last + 1:
                self.failures["event: missing or twice"] += 1
            last = int(node["value"])
            written = self._written.get((path, node["value"]))
            if written is not None:
                self.times["event"].append(time.monotonic() - written)

    def _lease(self, _number: int) -> None:
        client = self._client()
        self._ask(client, "PUT", "/honest/lease", f"value=me&ttl={_LEASE_S}")
        while self.target.goes_on:
            time.sleep(_LEASE_S / 4)
            status, _ = self._ask(client, "PUT", "/honest/lease",
                                  f"ttl={_LEASE_S}&refresh=true&prevExist=true")  # fmt: skip
            if status == 404:
                self.leases_lost += 1
                self._ask(client, "PUT", "/honest/lease", f"value=me&ttl={_LEASE_S}")


def set_up(address: Address) -> None:
    """Make the users and the honest keys, and ask for users from now on."""
    client = HTTPConnection(*address, timeout=60)

    def ask(path: str, body: object = None, user: str = "", form: str = "") -> None:
        headers = {"Content-Type": FORM} if form else {}
        if user:
            headers["Authorization"] = basic(user)
        client.request("PUT", path, form or (json.dumps(body) if body else None), headers)
        answer = client.getresponse()
        said = answer.read()
        if answer.status not in (200, 201):
            raise SystemExit(f"{path}: {answer.status} {said.decode()}")

    for n in range(_WRITERS):
        ask(f"/v2/keys/honest/{n}", form="value=0")
    for name, rights in (("honest", {"read": ["/honest/*"], "write": ["/honest/*"]}),
                         ("clumsy", {"read": ["/*"], "write": ["/clumsy*"]})):  # fmt: skip
        ask(f"/v2/auth/roles/{name}", {"role": name, "permissions": {"kv": rights}})
    for user, roles in ((ROOT, ["root"]), (HONEST, ["honest"]), (CLUMSY, ["clumsy"])):
        name, _, password = user.partition(":")
        ask(f"/v2/auth/users/{name}", {"user": name, "password": password, "roles": roles})
    ask("/v2/auth/enable", user=ROOT)
    nothing = {"role": "guest", "revoke": {"kv": {"read": ["/*"], "write": ["/*"]}}}
    ask("/v2/auth/roles/guest", nothing, user=ROOT)


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process, without the index, which is a mapped file."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0


def report(honest: Honest, rss_mb: float) -> bool:
    """Print what the honest clients have seen; return whether the targets are reached."""
    lines = []
    p99: dict[str, float] = {}
    for name, seconds in honest.times.items():
        ordered = sorted(seconds) or [float("inf")]
        p50, p99[name], longest = (percentile(ordered, p) * 1e3 for p in (50, 99, 100))
        times = f"p50 {p50:.1f} ms, p99 {p99[name]:.1f} ms, longest {longest:.1f} ms"
        lines.append(f"{name:5} {len(seconds):7}: {times}")
    failures = sum(honest.failures.values())
    lost = honest.leases_lost
    lines.append(f"failures {failures}, leases lost {lost}, memory {rss_mb:.0f} MB")
    lines += [f"  {times} x {failure}" for failure, times in honest.failures.most_common(12)]
    reached = (
        not failures
        and not lost
        and rss_mb <= RSS_MB
        and p99["GET"] <= GET_P99_MS
        and p99["PUT"] <= PUT_P99_MS
    )
    lines.append(
        f"p99 GET <= {GET_P99_MS:g} ms, PUT <= {PUT_P99_MS:g} ms, memory <= {RSS_MB:g} MB, "
        f"no failure: {'reached' if reached else 'missed'}"
    )
    sys.stdout.write("\n".join([*lines, ""]))
    return reached


def attack_all(address: Address, pid: int, names: Sequence[str], seconds: float) -> bool:
    """Run honest clients beside attacks; return whether the targets are reached."""
    set_up(address)
    honest = Honest(Target(address, time.monotonic() + seconds))
    drive = [*servers.die_with_parent(), "nice", "-n", "10", sys.executable, "-m", "bench.attack"]
    drive += ["--port", str(address[1]), "--seconds", str(seconds), "--drive"]
    attackers = [subprocess.Popen([*drive, name], cwd=servers.CHECKOUT) for name in names]
    working = threading.Thread(target=honest.run)
    working.start()
    rss_mb = 0.0
    while working.is_alive():
        rss_mb = max(rss_mb, resident_mb(pid))
        working.join(0.5)
    for attacker in attackers:
        attacker.kill()
        attacker.wait()
    return report(honest, rss_mb)


def attacked(port: int, data: Path) -> list[str]:
    """Return the command line of the server: its watchers fall behind no attack's events."""
    return [*servers.kvd_command(port, data), "--event-history-limit", "200000"]


def main() -> int:
    """Start a server and attack it, or (`--drive`) be one of the attackers."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.attack", description=__doc__.split("\n", 1)[0]
    )
    names = list(ATTACKS)
    parser.add_argument("--seconds", type=float, default=600, help="(default: 600)")
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="ATTACK", help=", ".join(names)
    )
    parser.add_argument("--dir", type=Path, default=servers.SCRATCH, help="directory for the data")
    parser.add_argument("--drive", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        end = time.monotonic() + options.seconds
        ATTACKS[options.drive](Target((servers.HOST, options.port), end))
        return 0
    with servers.Server("kvd", attacked, options.dir) as server:
        reached = attack_all(server.address, server.running.pid, options.only, options.seconds)
        if server.running.poll() is not None:
            sys.stdout.write(f"the server has ended; its log ends with:\n{server.log()}\n")
            return 1
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
