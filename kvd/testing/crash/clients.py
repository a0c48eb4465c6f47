"""Clients that write as fast as they are answered, and remember each word of the responses."""

from __future__ import annotations

import random
import threading
import time

from kvd.testing.crash.requests import DISCONNECTED, Connection, Request

_END_S = 60.0


class Clients:
    """Several clients at once, on keys that they share, until the server has gone.

    They set, swap, create in order, delete (also whole directories) and give long TTLs. Each
    written value is unique, and is up to 3,000 characters long.

    Args:
        number: how many, each with a connection and a thread of its own.
        seed: the draws of each client are the same for the same seed.
        keys: the number of keys for which they compete.
        reads: every other request is a GET.

    Attributes:
        requests: what has been requested since the last `join` or `stop`.
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
        self._dice = [random.Random(f"{seed} {n}") for n in range(number)]  # noqa: S311 -- no secrets
        self._counts = [0] * number
        self._versions: dict[str, int] = {}
        self.requests: list[Request] = []
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self._acked = self._running = 0
        self._changed = threading.Condition()

    def start(self, url: str, limit: int = 1 << 60) -> None:
        """Let all of them write, `limit` requests each, until `stop` or the server's end.

        Raises:
            RuntimeError: they have been started and not been joined.
            ValueError: the URL is not `http://HOST:PORT`.
        """
        if any(thread.is_alive() for thread in self._threads):
            raise RuntimeError("the clients are at work: stop() or join() them first")
        Connection(url).close()  # refuses what is no address, before there are threads
        self._stopping, self._acked, self._running = False, 0, self.number
        self._threads = [
            threading.Thread(target=self._run, args=[n, url, limit], daemon=True)
            for n in range(self.number)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self, acked: int, timeout_s: float = _END_S) -> None:
        """Wait for so many acknowledged writes since `start`.

        Raises:
            TimeoutError: they do not come, or the server has gone before.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._acked >= acked or not self._running, timeout_s)
        if self._acked < acked:
            raise TimeoutError(f"{self._acked} acknowledged writes, expected {acked}")

    def join(self) -> list[Request]:
        """Wait until all have ended; return what they requested since the last time.

        Raises:
            TimeoutError: the server still responds: `stop` ends them, too.
        """
        for thread in self._threads:
            thread.join(_END_S)
            if thread.is_alive():
                raise TimeoutError("the clients still have responses; end the server, or stop()")
        requests, self.requests = self.requests, []
        return requests

    def stop(self) -> list[Request]:
        """End them after their next response; otherwise as `join`."""
        self._stopping = True
        return self.join()

    def _run(self, number: int, url: str, limit: int) -> None:
        try:
            with Connection(url, self.requests) as connection:
                for _ in range(limit):
                    if self._stopping:
                        return
                    self._count(connection.request(self._choose(number)))
        except DISCONNECTED:
            # The request that the server has left unanswered stands in `requests`.
            return
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _count(self, request: Request) -> None:
        if request.acked and request.method != "GET":
            self._versions[request.key] = request.body["node"]["modifiedIndex"]
            with self._changed:
                self._acked += 1
                self._changed.notify_all()

    def _choose(self, number: int) -> Request:  # noqa: PLR0911 -- one per kind of request
        dice = self._dice[number]
        self._counts[number] += 1
        size = dice.choice((0, 0, 20, 300, 3000))
        value = f"{number}.{self._counts[number]}." + "x" * size
        key = f"/k/{dice.randrange(self._keys)}"
        now = time.monotonic
        if self.reads and dice.random() < 0.5:
            return Request("GET", key, {"quorum": "true"} if dice.random() < 0.2 else {}, now())
        match dice.choice(
            ("set", "set", "swap", "create", "order", "ttl", "delete", "tree", "clear")
        ):
            case "swap":
                params = {"value": value, "prevIndex": str(self._versions.get(key, 1))}
                return Request("PUT", key, params, now())
            case "create":
                return Request("PUT", key, {"value": value, "prevExist": "false"}, now())
            case "order":
                return Request("POST", f"/q/{number % 4}", {"value": value}, now())
            case "ttl":
                return Request(
                    "PUT", key, {"value": value, "ttl": str(dice.randrange(5000, 9000))}, now()
                )
            case "delete":
                return Request("DELETE", key, {}, now())
            case "tree":
                return Request(
                    "PUT", f"/t/{number % 4}/{dice.randrange(3)}/f", {"value": value}, now()
                )
            case "clear":
                if dice.random() < 0.5:
                    tree = dice.choice(("/t/", "/q/")) + str(number % 4)
                    return Request("DELETE", tree, {"recursive": "true"}, now())
        return Request("PUT", key, {"value": value}, now())
