"""Attacks of all kinds at once, and fifty honest clients that must not notice them.

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
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from bench.attack.kinds import ATTACKS
from bench.attack.requests import CLUMSY, FORM, HONEST, ROOT, Target, basic
from bench.load import servers
from bench.load.closed_loop import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.load.wire import Address

GET_P99_MS, PUT_P99_MS, RSS_MB = 50.0, 250.0, 700.0
_READERS, _WRITERS, _WATCHERS = 20, 15, 14
_PACE_S = 0.1
_LEASE_S = 2


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
                return 0, b""  # no writer is left
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
    """Run honest clients and attacks; return whether the targets are reached."""
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
