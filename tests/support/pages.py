"""A page that reads server-sent events, and the events that it reads."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.support.raw import Raw, request
from tests.support.server import Client, Server

EVENTS = "Accept: text/event-stream"


def end_of(server: Server, target: str, *headers: str) -> tuple[Any, list[bytes]]:
    """Ask for a watch that ends, and return its head and its chunks."""
    with Raw(server.port) as raw:
        raw.send(request("GET", f"/v2/keys{target}", *headers))
        head = raw.head()
        return head, list(raw.chunks())


class Page:
    """A stream of server-sent events, as a page's EventSource reads it."""

    def __init__(self, server: Server, target: str, last_id: str = "") -> None:
        self._raw = Raw(server.port)
        headers = [EVENTS, *([f"Last-Event-ID: {last_id}"] if last_id else [])]
        self._raw.send(request("GET", f"/v2/keys{target}", *headers))
        self.head = self._raw.head()
        self.last_id = last_id
        self._lines = self._read_lines()

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def _read_lines(self) -> Iterator[str]:
        text = b""
        for chunk in self._raw.chunks():
            *lines, text = (text + chunk).split(b"\n")
            for line in lines:
                yield line.decode()

    def event(self) -> tuple[str, Any] | None:
        """Return the name and the data of the next event, None at the end."""
        name = data = ""
        for line in self._lines:
            field, _, value = line.partition(": ")
            match field:
                case "id":
                    self.last_id = value
                case "event":
                    name = value
                case "data":
                    data = value
                case "" if not line and data:
                    return name, json.loads(data)
                case _:
                    assert line in ("", "retry: 1000", ": quiet"), line
        return None


def write_much(client: Client, key: str, dice: Random) -> None:
    names = ["a", "a/b", "a/b/c", "_h", "_h/x", "a/_h", "a/_h/y", "d", ""]
    for n in range(150):
        at = f"{key}/{dice.choice(names)}".rstrip("/")
        target = f"/v2/keys{at}"
        match dice.randrange(9):
            case 0:
                client.request("DELETE", f"{target}?recursive=true&dir=true")
            case 1:
                client.request("PUT", f"{target}?prevExist=true&refresh=true&ttl=500")
            case 2:
                client.request("PUT", f"{target}?prevExist=false", {"value": str(n)})
            case 3:
                client.request("PUT", f"{target}?prevExist=true", {"value": str(n)})
            case 4:
                client.request("PUT", f"{target}?prevValue={n - 3}", {"value": str(n)})
            case 5:
                client.request("POST", target, {"value": str(n)})
            case _:
                client.put(at, n)
