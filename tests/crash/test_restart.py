"""A restart changes nothing that a client can see: each answer is compared, byte for byte."""

import json
from typing import Any

import pytest

from tests.support.server import Client, Server

HISTORY = 1000  # the default of --event-history-limit
EVENTS = HISTORY + 60


def fill(client: Client) -> None:
    """More events than are kept, of every kind."""
    number = 0
    while client.get("/").index < EVENTS:
        number += 1
        key = f"/d{number % 7}/{number % 40}"
        match number % 8:
            case 0:
                client.post("/queue", number)
            case 1:
                client.put(f"/leased/{number}", number, ttl=5000 + number)
            case 2:
                client.delete(key)
            case 3:
                client.delete(f"/d{number % 7}", recursive="true")
            case _:
                client.put(key, "v" * (number % 50))
    client.put("/_hidden/a", "1")
    client.put("/dir", dir="true", ttl=900)


def without_ttl(found: Any) -> Any:
    """The same JSON without what is counted down from the clock; `expiration` stays."""
    if isinstance(found, dict):
        return {name: without_ttl(value) for name, value in found.items() if name != "ttl"}
    return [without_ttl(value) for value in found] if isinstance(found, list) else found


def ttls(found: Any) -> dict[str, int]:
    """The TTL of each node."""
    if isinstance(found, list):
        return {key: ttl for part in found for key, ttl in ttls(part).items()}
    own = {found["key"]: found["ttl"]} if "ttl" in found else {}
    return own | ttls(found.get("nodes", []))


def seen(server: Server) -> tuple[list[Any], dict[str, int]]:
    """Everything a client can ask for, and the TTLs apart."""
    client = server.client()
    tree = client.get("/", recursive="true", sorted="true")
    last = tree.index
    answers: list[Any] = [tree.index, tree.headers["x-etcd-cluster-id"], without_ttl(tree.json)]
    hidden = client.get("/_hidden", recursive="true")
    answers.append(hidden.json)
    for index in range(last - HISTORY + 1, last + 1):
        event = client.get("/", wait="true", recursive="true", waitIndex=index)
        answers.append((index, event.status, without_ttl(event.json)))
    for index in (2, last - HISTORY):
        gone = client.get("/", wait="true", recursive="true", waitIndex=index)
        assert (gone.status, gone.json["errorCode"]) == (400, 401)
        answers.append(gone.json)
    return answers, ttls(tree.json["node"])


@pytest.mark.parametrize("end", ["clean stop", "kill -9", "kill -9 and a rebuild"])
def test_a_restart_changes_no_answer(make_server, end):
    server = make_server("--wal-segment-bytes", "65536", "--snapshot-count", "300").start()
    fill(server.client())
    before, ttls_before = seen(server)
    if end == "clean stop":
        assert server.terminate() == 0
    else:
        server.kill()
    server.start(*(["--rebuild-index"] if "rebuild" in end else []))
    stats = json.loads(server.client().request("GET", "/v2/stats/store").body)
    assert {name: count for name, count in stats.items() if count} == {}
    after, ttls_after = seen(server)
    for was, is_now in zip(before, after, strict=True):
        assert is_now == was
    assert ttls_after.keys() == ttls_before.keys()
    # They count down, and go by whole seconds.
    assert all(0 <= ttls_before[key] - ttl <= 60 for key, ttl in ttls_after.items())
