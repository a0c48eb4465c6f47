"""The history of a key, and files as they were, over HTTP; against the events of a random run."""

import json
import threading
from random import Random
from typing import Any

import pytest

from tests.support.memory import MIB
from tests.support.pages import write_much
from tests.support.server import Client, Server, running

KEEPS = 40


def pages(client: Client, key: str, **query: object) -> list[Any]:
    """Read a history page by page, newest first."""
    found: list[Any] = []
    before: dict[str, object] = {}
    while True:
        answer = client.get(key, history="true", **query, **before)
        assert answer.status == 200, answer.body
        found += answer.json["events"]
        following = answer.headers.get("x-kvd-next")
        if following is None:
            return found
        before = {"before": following}


def without_time(event: Any) -> Any:
    return {name: field for name, field in event.items() if name != "time"}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server after a random run, and all of its events."""
    server = Server(tmp_path_factory.mktemp("data"), "--event-history-limit", str(KEEPS))
    for started in running(server):
        client = started.client()
        watch = started.watch("/", stream="true", recursive="true", hidden="true", refreshes="true")
        for seed in (5, 6):
            write_much(client, "/k", Random(seed))
        last = client.put("/end", "1").index
        events = []
        while not events or events[-1]["node"]["modifiedIndex"] < last:
            events.append(watch.event())
        watch.close()
        assert len(events) > KEEPS + 10
        yield started, events


KEYS = ["/k", "/k/a", "/k/a/b", "/k/a/b/c", "/k/_h/x", "/k/d", "/end", "/none", "/k/d2", "/"]


def concerns(event: Any, key: str, *, recursive: bool) -> bool:
    at = event["node"]["key"]
    if at == key or (recursive and at.startswith(key.rstrip("/") + "/")):
        return True
    return bool(
        event["action"] == "delete" and event["node"].get("dir") and key.startswith(at + "/")
    )


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("recursive", ["true", "false"])
def test_a_history_is_the_events_of_a_key_newest_first(lived, key, recursive):
    server, events = lived
    kept = events[-KEEPS:][::-1]
    client = server.client()
    for refreshes in ("true", "false"):
        expected = [
            event for event in kept
            if concerns(event, key, recursive=recursive == "true")
            and (refreshes == "true" or not event.get("refresh"))
        ]  # fmt: skip
        for limit in (1, 7, 10_000):
            found = pages(client, key, recursive=recursive, refreshes=refreshes, limit=limit)
            assert list(map(without_time, found)) == expected
    first = client.get(key, history="true").json
    assert first["first"] == kept[-1]["node"]["modifiedIndex"]
    assert (first["limit"], first["index"]) == (KEEPS, kept[0]["node"]["modifiedIndex"])
    assert (first["action"], first["key"]) == ("history", key)


@pytest.mark.parametrize("key", ["/k/a", "/k/a/b", "/k/a/b/c", "/k/_h/x", "/k/d", "/end", "/none"])
def test_a_file_is_shown_as_it_was(lived, key):
    server, events = lived
    client = server.client()
    first, last = (events[place]["node"]["modifiedIndex"] for place in (-KEEPS, -1))
    node: Any = None
    states = {}
    for event in events:
        shown = event["node"]
        if concerns(event, key, recursive=False):
            node = None if event["action"] == "delete" else shown
        states[shown["modifiedIndex"]] = node
    unknown = 0
    for index in range(first - 1, last + 1):
        answer = client.get(key, at=index)
        wanted = states[index]
        if answer.json.get("errorCode") == 401:
            unknown += 1  # it went with its directory, and no earlier event of it is held
            assert all(
                not concerns(event, key, recursive=False)
                for event in events[-KEEPS:] if event["node"]["modifiedIndex"] <= index
            )  # fmt: skip
            continue
        if wanted is None:
            assert (answer.status, answer.json["errorCode"]) == (404, 100), index
        elif wanted.get("dir"):
            assert (answer.status, answer.json["errorCode"]) == (403, 102), index
        else:
            found = answer.json["node"]
            assert {**found, "ttl": 0} == {**wanted, "ttl": 0}, index
    assert unknown < KEEPS // 2
    cleared = client.get(key, at=first - 2)
    assert (cleared.status, cleared.json["errorCode"]) == (400, 401)
    future = client.get(key, at=last + 1)
    assert (future.json["errorCode"], future.json["cause"]) == (209, 'invalid value for "at"')


def test_it_is_the_same_after_a_kill(lived):
    server, _ = lived
    client = server.client()
    before = pages(client, "/k", recursive="true", refreshes="true")
    server.kill()
    client = server.start().client()
    assert pages(client, "/k", recursive="true", refreshes="true") == before
    assert all(event["time"].endswith("Z") for event in before)


def test_head_and_shapes(client):
    client.put("/shapes", "é" * 100)
    client.put("/shapes", "x" * 100_000)
    answer = client.request("HEAD", "/v2/keys/shapes?history=true")
    assert (answer.status, answer.body) == (200, b"")
    newest, oldest = client.get("/shapes", history="true", maxValue=3).json["events"]
    assert newest["node"]["value"] == "xxx"
    assert (oldest["node"]["value"], oldest["node"]["size"]) == ("é", 200)
    shown = client.get("/shapes", history="true", keysOnly="true").json["events"]
    assert not any("value" in event["node"] for event in shown)
    plain, _ = client.get("/shapes", history="true").json["events"]
    assert plain["node"]["value"] == "x" * 100_000
    at = client.get("/shapes", at=oldest["node"]["modifiedIndex"], base64="true").json["node"]
    assert at["encoding"] == "base64"


@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ("before=3", '"before" needs "history"'),
        ("refreshes=true", '"refreshes" needs "history"'),
        ("history=true&hidden=true", '"hidden" cannot be used with "history"'),
        ("history=true&at=3", '"at" cannot be used with "history"'),
        ("history=true&limit=0", 'invalid value for "limit"'),
        ("history=true&before=0", 'invalid value for "before"'),
        ("at=0", 'invalid value for "at"'),
        ("at=1&recursive=true", '"at" cannot be used with "recursive"'),
        ("wait=true&history=true", '"history" cannot be used with "wait"'),
    ],
)
def test_what_is_wrong_is_named(client, query, cause):
    answer = client.request("GET", f"/v2/keys/a?{query}")
    assert (answer.status, answer.json["errorCode"], answer.json["cause"]) == (400, 209, cause)


def test_a_page_of_large_values_ends_early(make_server):
    server = make_server().start()
    client = server.client()
    for n in range(6):
        client.request("PUT", "/v2/raw/v?noValueOnSuccess=true", bytes((65 + n,)) * (MIB // 2))
    answer = client.get("/v", history="true")
    assert len(answer.json["events"]) < 6
    assert answer.headers["x-kvd-next"]
    assert [event["node"]["value"][0] for event in pages(client, "/v")] == list("FEDCBA")


def test_others_are_served_while_much_is_gone_through(make_server):
    """Every read beside a scan of a long history is answered before that scan is."""
    server = make_server("--event-history-limit", "100000").start()
    client = server.client()
    for n in range(150):
        body = {"ops": [{"action": "set", "key": f"/d/{m}", "value": str(n)} for m in range(100)]}
        headers = {"Content-Type": "application/json"}
        assert client.request("POST", "/v2/txn", json.dumps(body), headers).status == 200
    done = threading.Event()
    answers = []

    def scan() -> None:
        answers.append(server.client().get("/other", history="true"))
        done.set()

    thread = threading.Thread(target=scan)
    thread.start()
    served = 0
    while not done.is_set():
        assert client.get("/d/1").status == 200
        served += 1
    thread.join()
    assert answers[0].json["events"] == []
    assert served > 3


def test_of_a_key_of_very_many_components(client):
    """What is looked for in each event is bounded; the events are the same."""
    key = "/deep" + "/a" * 1000
    client.put(key, "1")
    client.put("/deep/other", "1")
    client.put("/deeper", "1")
    events = client.get(key, history="true").json["events"]
    assert [event["node"]["key"] for event in events] == [key]
    client.delete("/deep", recursive="true")
    events = client.get(key, history="true").json["events"]
    assert [event["action"] for event in events] == ["delete", "set"]
    deepest = "/x" + "/b" * 25_000
    assert client.get(deepest, history="true").json["events"] == []
