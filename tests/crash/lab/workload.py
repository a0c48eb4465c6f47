"""Clients that write as fast as they are answered, and remember each word of the answers."""

import http.client
import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_UNKNOWN_CAUSES = ("outcome unknown",)


@dataclass
class Op:
    """One request: what was asked, when, and what came of it.

    Attributes:
        body: The answer, None where there was none.
        index: What X-Etcd-Index said.
        end: When the answer was complete; infinity while there is none.
    """

    method: str
    key: str
    params: dict[str, str]
    start: float
    end: float = float("inf")
    status: int = 0
    index: int = 0
    body: Any = None

    @property
    def acked(self) -> bool:
        """The write was acknowledged, or the read answered."""
        return self.status in (200, 201)

    @property
    def in_doubt(self) -> bool:
        """A write of which nobody can say whether it happened."""
        if self.method == "GET":
            return False
        return self.status == 0 or (
            self.status >= 500 and any(c in str(self.body) for c in _UNKNOWN_CAUSES)
        )


class Connection:
    """One keep-alive connection; each request becomes an `Op`."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def request(self, op: Op) -> Op:
        """Send it and fill in the answer; the errors of a broken connection pass through."""
        self.send(op)
        return self.receive(op)

    def send(self, op: Op) -> None:
        """Send it; `receive` must come before the next one."""
        target, body = f"/v2/keys{op.key}", None
        if op.method in ("PUT", "POST"):
            body = urlencode(op.params).encode()
        elif op.params:
            target += "?" + urlencode(op.params)
        self._http.request(op.method, target, body, FORM if body is not None else {})

    def receive(self, op: Op) -> Op:
        """Wait for the answer to what was sent, and fill it in."""
        response = self._http.getresponse()
        data = response.read()
        op.end = time.monotonic()
        op.status, op.body = response.status, json.loads(data)
        op.index = int(response.headers.get("X-Etcd-Index", 0))
        return op

    def put(self, key: str, value: str, **params: object) -> Op:
        """Set a key."""
        form = {"value": value} | {name: str(given) for name, given in params.items()}
        return self.request(Op("PUT", key, form, time.monotonic()))

    def get(self, key: str, **params: object) -> Op:
        """Read a key."""
        asked = {name: str(given) for name, given in params.items()}
        return self.request(Op("GET", key, asked, time.monotonic()))

    def delete(self, key: str, **params: object) -> Op:
        """Delete a key."""
        asked = {name: str(given) for name, given in params.items()}
        return self.request(Op("DELETE", key, asked, time.monotonic()))

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Clients:
    """Several clients at once, on keys that they share.

    They set, swap, create in order, delete (also whole directories) and give long TTLs; with
    `reads` every other request is a GET. Each written value is unique.
    """

    def __init__(
        self,
        number: int,
        seed: object,
        *,
        keys: int = 8,
        reads: bool = False,
    ) -> None:
        self.number = number
        self.reads = reads
        self._keys = keys
        self._dice = [random.Random(f"{seed} {n}") for n in range(number)]
        self._counts = [0] * number
        self._versions: dict[str, int] = {}
        self.ops: list[Op] = []
        self._threads: list[threading.Thread] = []
        self._stopping = False

    def start(self, port: int, limit: int = 1 << 60) -> None:
        """Let all of them write, `limit` requests each, until `stop` or the server's end."""
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=[n, port, limit], daemon=True)
            for n in range(self.number)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> list[Op]:
        """Wait for all of them; return what they asked since the last time."""
        for thread in self._threads:
            thread.join(60)
        ops, self.ops = self.ops, []
        return ops

    def stop(self) -> list[Op]:
        """End them after their next answer."""
        self._stopping = True
        return self.join()

    def _run(self, number: int, port: int, limit: int) -> None:
        connection = Connection(port)
        try:
            for _ in range(limit):
                if self._stopping:
                    return
                op = self._choose(number)
                self.ops.append(op)
                connection.request(op)
                if op.acked and op.method != "GET":
                    self._versions[op.key] = op.body["node"]["modifiedIndex"]
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            # The server has gone; the request it left unanswered stands in `ops`.
            return
        finally:
            connection.close()

    def _choose(self, number: int) -> Op:  # noqa: PLR0911 -- one per kind of request
        dice = self._dice[number]
        self._counts[number] += 1
        size = dice.choice((0, 0, 20, 300, 3000))
        value = f"{number}.{self._counts[number]}." + "x" * size
        key = f"/k/{dice.randrange(self._keys)}"
        now = time.monotonic
        if self.reads and dice.random() < 0.5:
            return Op("GET", key, {"quorum": "true"} if dice.random() < 0.2 else {}, now())
        match dice.choice(
            ("set", "set", "swap", "create", "order", "ttl", "delete", "tree", "clear")
        ):
            case "swap":
                params = {"value": value, "prevIndex": str(self._versions.get(key, 1))}
                return Op("PUT", key, params, now())
            case "create":
                return Op("PUT", key, {"value": value, "prevExist": "false"}, now())
            case "order":
                return Op("POST", f"/q/{number % 4}", {"value": value}, now())
            case "ttl":
                return Op(
                    "PUT", key, {"value": value, "ttl": str(dice.randrange(5000, 9000))}, now()
                )
            case "delete":
                return Op("DELETE", key, {}, now())
            case "tree":
                return Op("PUT", f"/t/{number % 4}/{dice.randrange(3)}/f", {"value": value}, now())
            case "clear":
                if dice.random() < 0.5:
                    tree = dice.choice(("/t/", "/q/")) + str(number % 4)
                    return Op("DELETE", tree, {"recursive": "true"}, now())
        return Op("PUT", key, {"value": value}, now())
