"""SIGKILL in the middle of writing: every answer that a client received holds afterwards.

Sixteen clients write without pause, each below a directory of its own, one more watches everything.
The server is killed, started again and compared with what the clients were told. A write whose
answer did not come may have happened or not; nothing else is left open.

`scripts/crash-loop` does the same with more kills.
"""

import contextlib
import http.client
import json
import random
import string
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import PATIENCE_S, Answer, Client, Server

WRITERS = 16
HISTORY_LIMIT = 1000  # the default of --event-history-limit

Node = dict[str, Any]


@dataclass(frozen=True)
class Doubt:
    """A write whose answer did not come."""

    action: str
    key: str
    value: str | None


class Received:
    """What all clients together were told; shared by their threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.events: dict[int, Any] = {}
        self.index = 0
        self.raft_index = 0

    def note(self, answer: Answer) -> None:
        """Remember a write that was acknowledged."""
        event = without_ttl(answer.json)
        with self._changed:
            assert self.events.setdefault(answer.index, event) == event
            self.index = max(self.index, answer.index)
            self.raft_index = max(self.raft_index, int(answer.headers["x-raft-index"]))
            self._changed.notify_all()

    def note_event(self, event: Any) -> None:
        """Remember what a watcher saw, which may come before the writer's own answer."""
        index = event["node"]["modifiedIndex"]
        with self._changed:
            assert self.events.setdefault(index, without_ttl(event)) == without_ttl(event)
            self.index = max(self.index, index)

    def wait_for_more(self, count: int) -> None:
        with self._changed:
            target = len(self.events) + count
            assert self._changed.wait_for(lambda: len(self.events) >= target, PATIENCE_S)


class Writer:
    """One client: what it wrote, and what it may have written."""

    def __init__(self, number: int, received: Received, seed: int) -> None:
        self.directory = f"/writer{number}"
        self.received = received
        self.dice = random.Random(f"{seed} {number}")
        self.nodes: dict[str, Node] = {}
        self.doubt: Doubt | None = None

    def write_until_killed(self, server: Server) -> None:
        client = server.client()
        # The write that is interrupted stands in self.doubt.
        with contextlib.suppress(OSError, http.client.HTTPException):
            while True:
                self.write_once(client)

    def write_once(self, client: Client) -> None:
        key = f"{self.directory}/{self.dice.randrange(8)}"
        value = "".join(self.dice.choices(string.ascii_letters, k=self.dice.choice((0, 20, 3000))))
        known = self.nodes.get(key)
        match self.dice.choice(("set", "swap", "order", "ttl", "delete")):
            case "swap" if known is not None:
                self.doubt = Doubt("compareAndSwap", key, value)
                condition = {"prevIndex": known["modifiedIndex"]}
                answer = client.put(key, value, **condition)
            case "order":
                self.doubt = Doubt("create", f"{self.directory}/queue", value)
                answer = client.post(f"{self.directory}/queue", value)
            case "ttl":
                self.doubt = Doubt("set", key, value)
                answer = client.put(key, value, ttl=self.dice.randrange(1000, 2000))
            case "delete" if known is not None:
                self.doubt = Doubt("delete", key, None)
                answer = client.delete(key)
            case _:
                self.doubt = Doubt("set", key, value)
                answer = client.put(key, value)
        assert answer.status in (200, 201), answer.body
        assert answer.json["action"] == self.doubt.action
        self.received.note(answer)
        self.doubt = None
        node = without_ttl(answer.json)["node"]
        if answer.json["action"] == "delete":
            del self.nodes[key]
        else:
            self.nodes[node["key"]] = node

    def compare(self, found: dict[str, Node]) -> None:
        """Compare with what is there; a write in doubt is settled by what is found."""
        doubt, self.doubt = self.doubt, None
        if doubt is not None and doubt.action == "create":
            for key in found.keys() - self.nodes.keys():
                assert key.startswith(f"{doubt.key}/")
                assert found[key]["value"] == doubt.value
                self.nodes[key] = found[key]
                break  # there was only one
        elif doubt is not None and found.get(doubt.key) != self.nodes.get(doubt.key):
            self.settle(doubt, found.get(doubt.key))
        assert found == self.nodes

    def settle(self, doubt: Doubt, found: Node | None) -> None:
        before = self.nodes.pop(doubt.key, None)
        if found is None:
            assert doubt.action == "delete"
            return
        assert doubt.action != "delete"
        assert found["value"] == doubt.value
        assert before is None or found["modifiedIndex"] > before["modifiedIndex"]
        self.nodes[doubt.key] = found


class Watcher:
    """Sees every event until the server goes."""

    def __init__(self, received: Received) -> None:
        self.received = received

    def watch_until_killed(self, server: Server) -> None:
        watch = server.watch(
            "/", recursive="true", stream="true", waitIndex=self.received.index + 1
        )
        # The connection is cut, perhaps within an event.
        with contextlib.suppress(OSError, http.client.HTTPException, json.JSONDecodeError):
            while True:
                self.received.note_event(watch.event())


class Threads:
    """Calls that run side by side; what one of them raises comes out of `join`."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []

    def start(self, call: Callable[..., None], *args: object) -> None:
        def run() -> None:
            try:
                call(*args)
            except Exception as error:  # noqa: BLE001 -- it is raised again in join()
                self._errors.append(error)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        for error in self._errors:
            raise error


def without_ttl(event: Any) -> Any:
    """An event or node without the field that depends on when it is looked at."""
    if isinstance(event, list):
        return [without_ttl(node) for node in event]
    if not isinstance(event, dict):
        return event
    return {name: without_ttl(value) for name, value in event.items() if name != "ttl"}


def files_below(node: Node) -> dict[str, Node]:
    found = {}
    for child in node.get("nodes", []):
        if child.get("dir"):
            found |= files_below(child)
        else:
            found[child["key"]] = without_ttl(child)
    return found


def everything(client: Client) -> tuple[dict[str, Node], Answer]:
    answer = client.get("/", recursive="true", sorted="true")
    assert answer.status == 200
    return files_below(answer.json["node"]), answer


def history(server: Server, first: int, last: int) -> list[Any]:
    """All events from one index to another, without their TTLs."""
    if first > last:
        return []
    watch = server.watch("/", recursive="true", stream="true", waitIndex=first)
    return [without_ttl(watch.event()) for _ in range(first, last + 1)]


def check_history(server: Server, received: Received, index: int) -> list[Any]:
    first = max(2, index - HISTORY_LIMIT + 1)
    events = history(server, first, index)
    assert [event["node"]["modifiedIndex"] for event in events] == list(range(first, index + 1))
    for event in events:
        number = event["node"]["modifiedIndex"]
        assert received.events.get(number, event) == event
    return events


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="default"),
        pytest.param(
            ["--wal-segment-bytes", "262144", "--snapshot-count", "300"],
            id="small-segments-and-many-snapshots",
        ),
    ],
)
def test_what_was_acknowledged_survives_kill_9(make_server, request, flags):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201 -- shown when the test fails
    dice = random.Random(seed)
    received = Received()
    writers = [Writer(number, received, seed) for number in range(WRITERS)]
    watcher = Watcher(received)
    server = make_server(*flags).start()
    client = server.client()
    first_head = client.get("/").headers

    for kills in range(1, request.config.getoption("--kills") + 1):
        threads = Threads()
        threads.start(watcher.watch_until_killed, server)
        for writer in writers:
            threads.start(writer.write_until_killed, server)
        received.wait_for_more(dice.randrange(1, 800))
        server.kill()
        threads.join()
        in_doubt = sum(writer.doubt is not None for writer in writers)

        server.start()
        client = server.client()
        found, answer = everything(client)
        for writer in writers:
            mine = f"{writer.directory}/"
            writer.compare({key: found[key] for key in found if key.startswith(mine)})
        assert received.index <= answer.index <= received.index + in_doubt
        assert int(answer.headers["x-raft-index"]) >= max(received.raft_index, answer.index)
        assert int(answer.headers["x-raft-term"]) == int(first_head["x-raft-term"]) + kills
        assert answer.headers["x-etcd-cluster-id"] == first_head["x-etcd-cluster-id"]
        events = check_history(server, received, answer.index)
        # What happened though nobody was told counts as told from here on.
        for event in events:
            received.note_event(event)

    server.kill()
    server.start("--rebuild-index")
    client = server.client()
    found_again, answer_again = everything(client)
    assert found_again == found
    assert answer_again.index == answer.index
    assert check_history(server, received, answer_again.index) == events


def test_an_expiration_survives_to_the_nanosecond_and_keeps_its_moment(make_server):
    server = make_server().start()
    client = server.client()
    set_node = client.put("/a", "1", ttl=1).json["node"]
    kept_node = client.put("/b", "1", ttl=1000).json["node"]
    server.kill()

    server.start()
    client = server.client()
    assert client.get("/b").json["node"]["expiration"] == kept_node["expiration"]
    watch = server.watch("/a", waitIndex=set_node["modifiedIndex"] + 1)
    event = watch.event()
    assert event["action"] == "expire"
    assert event["prevNode"]["expiration"] == set_node["expiration"]


def test_a_key_that_was_due_while_the_server_was_down_expires_at_its_start(make_server):
    server = make_server().start()
    client = server.client()
    index = client.put("/a", "1", ttl=0).index
    server.kill()

    server.start()
    client = server.client()
    missing = client.get("/a")
    assert (missing.status, missing.index) == (404, index + 1)
    (event,) = history(server, index + 1, index + 1)
    assert (event["action"], event["node"]["key"]) == ("expire", "/a")


def test_a_clean_stop_keeps_everything_too(make_server):
    server = make_server().start()
    client = server.client()
    client.put("/a", "1", ttl=1000)
    client.put("/dir", dir="true", ttl=1000)
    client.post("/queue", "1")
    client.delete("/a")
    before = client.get("/", recursive="true", sorted="true")
    events = history(server, 2, before.index)
    assert server.terminate() == 0

    server.start()
    client = server.client()
    after = client.get("/", recursive="true", sorted="true")
    assert without_ttl(after.json) == without_ttl(before.json)
    assert after.index == before.index
    assert history(server, 2, after.index) == events


def test_an_index_is_not_given_twice_though_nothing_is_left_of_it(make_server):
    server = make_server().start()
    client = server.client()
    client.put("/a", "1")
    index = client.delete("/a").index
    server.kill()
    server.start()
    client = server.client()
    assert client.get("/").index == index
    assert client.put("/a", "2").index == index + 1


def test_data_can_be_moved_to_another_directory(make_server, tmp_path: Path):
    server = make_server().start()
    client = server.client()
    index = client.put("/a", "1").index
    server.terminate()
    server.data_dir = server.data_dir.rename(tmp_path / "moved")
    server.start()
    client = server.client()
    assert client.get("/a").json["node"]["modifiedIndex"] == index
