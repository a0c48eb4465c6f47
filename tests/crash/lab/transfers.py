"""Transactions: units are moved between accounts, and no reader ever finds some missing."""

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kvd.testing.crash import DISCONNECTED
from tests.crash.lab.experiment import Experiment, Trial, Violation
from tests.crash.lab.killing import FLAGS, start
from tests.crash.lab.process import Kvd, NotListening

ACCOUNTS = 50
UNITS = 100
WRITERS = 8
"""What a client meets when the server ends."""
JSON = {"Content-Type": "application/json"}
# Each fault of which some part of a frame can be left behind, or all of it without an answer.
PLACES = (
    *("walBeforeWrite=crash", "walBeforeWrite=tear:100", "walBeforeWrite=tear:300"),
    *("walBeforeSync=crash", "walAfterSync=crash", "indexBeforeCommit=crash"),
    *("walBeforeWrite=error:EIO", "walBeforeSync=error:EIO"),
)


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, target: str, body: object = None) -> tuple[int, Any]:
        """Return status and body of an answer."""
        data = None if body is None else json.dumps(body).encode()
        self._http.request(method, target, data, JSON if data else {})
        response = self._http.getresponse()
        return response.status, json.loads(response.read())

    def balances(self, accounts: list[str]) -> list[dict[str, Any]]:
        """Return the nodes of accounts, all at one index."""
        _, answer = self.ask("POST", "/v2/mget", {"keys": accounts})
        nodes: list[dict[str, Any]] = answer["nodes"]
        return nodes


class Bank:
    """What moves units, and what looks on."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._names = [f"/accounts/{n}" for n in range(ACCOUNTS)]
        self._lock = threading.Lock()
        self.problems: list[str] = []
        self.received: dict[str, list[int]] = {}
        """The indexes of each transfer that was acknowledged, by its name."""
        self._threads: list[threading.Thread] = []
        self._moved = 0

    def open(self, port: int) -> None:
        """Fill the accounts, at once."""
        ops = [{"action": "create", "key": name, "value": str(UNITS)} for name in self._names]
        with Client(port) as client:
            status, answer = client.ask("POST", "/v2/txn", {"ops": ops})
        self._trial.check(status == 200, f"the accounts cannot be made: {answer}")

    def start(self, port: int) -> None:
        """Let everybody go on until the server ends."""
        life = self._trial.dice.random()
        runs = [partial(self._move, random.Random(f"{life} {n}")) for n in range(WRITERS)]
        runs += [self._sum_at_once, self._sum_listing]
        self._threads = [threading.Thread(target=self._until_end, args=[run, port]) for run in runs]
        self._threads.append(threading.Thread(target=self._mirror, args=[port]))
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all have noticed the end."""
        for thread in self._threads:
            thread.join(60)
        if self.problems:
            raise Violation(self.problems[0])

    def settle(self, port: int) -> None:
        """Hold a restarted server against what was acknowledged."""
        with Client(port) as client:
            self._check_sum(client.balances(self._names), "after a restart")
            _, listing = client.ask("GET", "/v2/keys/log")
        found: dict[str, int] = {}
        for node in listing.get("node", {}).get("nodes", ()):
            found[node["value"]] = node["createdIndex"]
        for name, indexes in self.received.items():
            self._trial.check(
                found.get(name) == indexes[-1], f"the acknowledged transfer {name} is lost"
            )
        self._trial.figures["transfers that had happened"] = len(found)

    def _until_end(self, run: Callable[[Client], None], port: int) -> None:
        with contextlib.suppress(*DISCONNECTED), Client(port) as client:
            run(client)

    def _check_sum(self, nodes: list[dict[str, Any]], when: str) -> None:
        total = sum(int(node["value"]) for node in nodes)
        if total != ACCOUNTS * UNITS:
            self.problems.append(f"{when} there are {total} units, not {ACCOUNTS * UNITS}")

    def _move(self, dice: random.Random, client: Client) -> None:
        while not self.problems:
            giver, taker = dice.sample(self._names, 2)
            nodes = client.balances([giver, taker])
            amount = dice.randint(1, 30)
            left, got = int(nodes[0]["value"]) - amount, int(nodes[1]["value"]) + amount
            if left < 0:
                continue
            with self._lock:
                self._moved += 1
                name = f"{self._moved}"
            status, answer = client.ask("POST", "/v2/txn", {
                "when": [{"key": n["key"], "modifiedIndex": n["modifiedIndex"]} for n in nodes],
                "ops": [
                    {"action": "set", "key": giver, "value": str(left)},
                    {"action": "update", "key": taker, "value": str(got)},
                    {"action": "createInOrder", "key": "/log", "value": name},
                ],
            })  # fmt: skip
            if status == 200:
                indexes = [event["node"]["modifiedIndex"] for event in answer["events"]]
                if indexes != list(range(indexes[0], indexes[0] + 3)):
                    self.problems.append(f"a transaction has the indexes {indexes}")
                self.received[name] = indexes
            elif status not in (412, 500):
                self.problems.append(f"a transfer is answered with {status}: {answer}")

    def _sum_at_once(self, client: Client) -> None:
        while not self.problems:
            self._check_sum(client.balances(self._names), "read at once")

    def _sum_listing(self, client: Client) -> None:
        while not self.problems:
            _, listing = client.ask("GET", "/v2/keys/accounts?recursive=true")
            self._check_sum(listing["node"]["nodes"], "in a listing")

    def _mirror(self, port: int) -> None:
        """Follow all events from a listing on; the sum is right behind each transfer."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.suppress(*DISCONNECTED), contextlib.closing(connection):
            connection.request("GET", "/v2/keys/accounts")
            response = connection.getresponse()
            index = int(response.headers["X-Etcd-Index"])
            mirror = {node["key"]: node for node in json.loads(response.read())["node"]["nodes"]}
            query = f"wait=true&stream=true&recursive=true&waitIndex={index + 1}"
            connection.request("GET", f"/v2/keys/?{query}")
            stream = connection.getresponse()
            while line := stream.readline():
                node = json.loads(line)["node"]
                if node["key"] in mirror:
                    mirror[node["key"]] = node
                else:  # it is in the log now: the transfer is complete
                    self._check_sum(
                        list(mirror.values()), f"in a mirror at {node['modifiedIndex']}"
                    )


def transfers(trial: Trial) -> None:
    """End the server amid transfers, at random or at a named place, and look who misses units."""
    bank = Bank(trial)
    data = trial.directory / "data"
    with Kvd(data, *FLAGS, "--enable-failpoints", mutant=trial.mutant) as kvd:
        start(kvd)
        bank.open(kvd.port)
        kvd.terminate()
        for ended in range(1, trial.rounds + 1):
            fault = ""
            if ended % 2 == 0:
                place = trial.dice.choice(PLACES)
                fault = f"{place}@{trial.dice.randint(2, 60)}"
            try:
                start(kvd, *(["--failpoint", fault] if fault else []))
            except Violation:
                if not fault:
                    raise
            else:
                bank.start(kvd.port)
                end = time.monotonic() + (10 if fault else trial.dice.uniform(0.2, 0.8))
                while time.monotonic() < end and kvd.running():
                    time.sleep(0.005)
                kvd.stop()
                bank.join()
            with contextlib.suppress(NotListening):
                start(kvd)
            bank.settle(kvd.port)
            kvd.kill()
            trial.figures["ends"] = ended
            trial.figures["acknowledged transfers"] = len(bank.received)
            trial.figures["lost"] = 0
            trial.progress(ended)


EXPERIMENTS = (
    Experiment(
        "transfers",
        "of units that are moved by transactions none is ever missing: for no reader, no listing, "
        "no watcher, and after no end of the process",
        ("split-transaction",),
        *(50, 4, "ends of the process", transfers),
    ),
)
