"""Acknowledged writes are read back at once, node by node and in listings, and after a kill.

A node is served from memory, a listing from the index, and the index is written to later: so each
client asks for both, and knows to the last node what they must say, as its directory is its own.
"""

import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kvd.testing.crash import DISCONNECTED, Connection, Request
from tests.crash.lab.experiment import Experiment, Trial, Violation
from tests.crash.lab.killing import FLAGS, start
from tests.crash.lab.process import Kvd

_CLIENTS = 6

Tree = dict[str, tuple[str | None, int, int]]
"""Value (None: a directory), created and modified index of each node below a client's directory."""


class Client:
    """Writes to a directory of its own, and reads back what must be there."""

    def __init__(self, number: int, seed: int) -> None:
        self.home = f"/r/{number}"
        self.writes = self.reads = 0
        self._dice = random.Random(f"{seed} {number}")
        self._tree: Tree = {}
        self._doubt: Request | None = None

    def live(self, url: str) -> None:
        """Write and read until the server has gone."""
        with (
            contextlib.suppress(*DISCONNECTED),
            Connection(url) as connection,
        ):
            self.find_again(connection)
            while True:
                self._write(connection)
                # Not each time: what is listed is in the index from then on.
                if self._dice.random() < 0.3:
                    self._list(connection)
                for _ in range(2):
                    self._get(connection)

    def find_again(self, connection: Connection) -> None:
        """Read all that there is after a start; the last write may have happened or not."""
        seen = self._listed(connection)
        if seen != self._tree and not self._has_happened(seen):
            raise Violation(f"after a start {self._difference(seen)}")
        self._tree, self._doubt = seen, None
        for key in seen:
            self._compare(connection.get(key), key)

    def _has_happened(self, seen: Tree) -> bool:
        """Return whether this is what the write that was not answered has made."""
        op = self._doubt
        if op is None:
            return False
        new = sorted(seen.keys() - self._tree.keys())
        key = new[-1] if op.method == "POST" and new else op.key
        after = dict(self._tree)
        self._perform(after, op, key, 0)
        return {key: node[0] for key, node in after.items()} == {
            key: node[0] for key, node in seen.items()
        }

    def _write(self, connection: Connection) -> None:
        op = self._doubt = self._choose()
        connection.request(op)
        expected = self._status(op)
        if op.status not in expected:
            raise Violation(f"{op.method} {op.key} {op.params}: {op.status} {op.body}")
        if op.acked:
            node = op.body["node"]
            self._perform(self._tree, op, node["key"], node["modifiedIndex"])
            self.writes += 1
        self._doubt = None

    def _choose(self) -> Request:
        dice, home = self._dice, self.home
        directory = f"{home}/d{dice.randrange(3)}"
        file = f"{directory}/f{dice.randrange(4)}"
        value = f"{dice.randrange(1 << 30)}." + "x" * dice.choice((0, 0, 300, 3000))
        now = time.monotonic()
        match dice.randrange(10):
            case 0:
                return Request("POST", f"{home}/q", {"value": value}, now)
            case 1 | 2:
                return Request("DELETE", file, {}, now)
            case 3 | 4:
                return Request("DELETE", directory, {"dir": "true"}, now)
            case 5:
                tree = dice.choice((directory, f"{home}/q"))
                return Request("DELETE", tree, {"recursive": "true"}, now)
            case 6:
                return Request("PUT", file, {"value": value, "ttl": "9000"}, now)
        return Request("PUT", file, {"value": value}, now)

    def _status(self, op: Request) -> tuple[int, ...]:
        if op.method != "DELETE":
            return 200, 201
        if op.key not in self._tree:
            return (404,)
        return (403,) if "dir" in op.params and any(self._below(self._tree, op.key)) else (200,)

    def _perform(self, tree: Tree, op: Request, key: str, index: int) -> None:
        if op.method == "DELETE":
            for gone in [key, *self._below(tree, key)]:
                tree.pop(gone, None)
            return
        above = key.rpartition("/")[0]
        if above != self.home:
            tree.setdefault(above, (None, index, index))
        tree[key] = op.params["value"], index, index

    @staticmethod
    def _below(tree: Tree, key: str) -> Iterator[str]:
        return (other for other in tree if other.startswith(key + "/"))

    def _get(self, connection: Connection) -> None:
        key = f"{self.home}/d{self._dice.randrange(3)}"
        if self._dice.random() < 0.8:
            key += f"/f{self._dice.randrange(4)}"
        self._compare(connection.get(key), key)
        self.reads += 1

    def _compare(self, op: Request, key: str) -> None:
        expected = self._tree.get(key)
        seen = _node(op.body["node"]) if op.acked else None
        if seen != expected:
            raise Violation(f"{key} is read as {str(seen)[:90]}, expected {str(expected)[:90]}")
        if expected is not None and expected[0] is None:
            children = {node["key"] for node in op.body["node"].get("nodes", [])}
            if children != set(self._below(self._tree, key)):
                raise Violation(f"{key} is listed with {sorted(children)}")

    def _list(self, connection: Connection) -> None:
        seen = self._listed(connection)
        if seen != self._tree:
            raise Violation(self._difference(seen))

    def _listed(self, connection: Connection) -> Tree:
        self.reads += 1
        op = connection.get(self.home, recursive="true")
        if not op.acked:
            return {}
        found: Tree = {}
        waiting = list(op.body["node"].get("nodes", []))
        while waiting:
            node = waiting.pop()
            found[node["key"]] = _node(node)
            waiting += node.get("nodes", [])
        return found

    def _difference(self, seen: Tree) -> str:
        key = min(key for key, _ in seen.items() ^ self._tree.items())
        received, expected = str(seen.get(key))[:90], str(self._tree.get(key))[:90]
        return f"{key} is listed as {received}, expected {expected}"


def _node(node: Any) -> tuple[str | None, int, int]:
    value = None if node.get("dir") else node["value"]
    return value, node["createdIndex"], node["modifiedIndex"]


def read_back(trial: Trial) -> None:
    """Clients read what they wrote, in both ways; the server is killed amid of it."""
    clients = [Client(number, trial.seed) for number in range(_CLIENTS)]
    with (
        Kvd(trial.directory / "data", *FLAGS, mutant=trial.mutant) as kvd,
        ThreadPoolExecutor(_CLIENTS) as pool,
    ):
        start(kvd)
        for kills in range(1, trial.rounds + 1):
            lives = [pool.submit(client.live, kvd.url) for client in clients]
            wanted = _writes(clients) + trial.dice.randrange(200)
            while _writes(clients) < wanted and not all(life.done() for life in lives):
                time.sleep(0.002)
            kvd.kill()
            for life in lives:
                life.result()
            start(kvd)
            trial.sample("ready after SIGKILL", kvd.ready_s)
            trial.figures["kills"] = kills
            trial.figures["writes"] = _writes(clients)
            trial.figures["reads"] = sum(client.reads for client in clients)
            trial.figures["read wrongly"] = 0
            trial.progress(kills)
        with Connection(kvd.url) as connection:
            for client in clients:
                client.find_again(connection)


def _writes(clients: list[Client]) -> int:
    return sum(client.writes for client in clients)


EXPERIMENTS = (
    Experiment(
        "read-back",
        "what was acknowledged is in the next read of a node and in the next listing, also after "
        "SIGKILL; a directory is refused as not empty while it has a child, and only then",
        ("scan-unflushed", "forget-dirty"),
        *(300, 4, "kills", read_back),
    ),
)
