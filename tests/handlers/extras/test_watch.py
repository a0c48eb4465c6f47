"""Extras of watches, over HTTP: filters, shapes, ends, progress, server-sent events."""

import json
from base64 import b64encode
from random import Random
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.pages import end_of, write_much
from tests.support.raw import Raw, request


def test_a_watch_ends_after_its_time(server, client, key):
    index = client.put(key, "1").index
    for query in ("", "&stream=true", f"&waitIndex={index + 1}", "&recursive=true&stream=true"):
        head, chunks = end_of(server, f"{key}?wait=true&waitTimeout=0.1{query}")
        assert (head.status, chunks) == (200, [])
        assert int(head.headers["x-etcd-index"]) == index
        assert head.headers["content-type"] == "application/json"
    server.wait_for_watchers(0)


def test_time_counts_from_what_was_sent_last(server, client, key):
    """A stream that is told what happened before it ends after that, not amid it."""
    index = client.put(key, "0").index
    for n in range(50):
        client.put(key, n)
    _, chunks = end_of(server, f"{key}?wait=true&stream=true&waitTimeout=0.1&waitIndex={index}")
    assert len(chunks) == 51


def test_an_event_or_an_empty_end_below_it(client, server, key):
    for trial in range(40):
        with Raw(server.port) as raw:
            raw.send(request("GET", f"/v2/keys{key}?wait=true&waitTimeout=0.1"))
            begun = int(raw.head().headers["x-etcd-index"])
            for _ in range(3 * trial):  # in the end it has ended before
                client.get("/")
            index = client.put(key, trial).index
            received = list(raw.chunks())
        if received:
            assert json.loads(received[0])["node"]["modifiedIndex"] == index
        else:
            assert begun < index
            assert client.get(key, wait="true", waitIndex=begun + 1).json["node"]["key"] == key


def test_max_wait_ends_every_watch(make_server):
    server = make_server("--max-wait", "1", "--extras=false").start()
    client = server.client()
    client.put("/a", "1")
    for query in ("", "&stream=true", "&waitTimeout=3600"):
        head, chunks = end_of(server, f"/a?wait=true{query}")
        assert (head.status, chunks) == (200, [])
    watch = server.watch("/a", stream="true", actions="delete")
    client.put("/a", "2")
    assert watch.event()["action"] == "set"  # without extras there is no filter
    watch.close()


def test_progress_is_sent_when_nothing_else_is(server, client, key):
    client.put(key, "1")
    watch = server.watch(key, stream="true", progress="0.1", actions="delete")
    other = client.put(f"{key}-other", "1").index
    while (received := watch.event())["index"] < other:
        assert received["action"] == "progress"
    client.delete(key)
    while (received := watch.event())["action"] == "progress":
        pass
    assert received["action"] == "delete"
    watch.close()


@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ("wait=true&waitTimeout=0", 'invalid value for "waitTimeout"'),
        ("wait=true&waitTimeout=0.09", 'invalid value for "waitTimeout"'),
        ("wait=true&waitTimeout=3601", 'invalid value for "waitTimeout"'),
        ("wait=true&waitTimeout=1s", 'invalid value for "waitTimeout"'),
        ("wait=true&waitTimeout=1e2", 'invalid value for "waitTimeout"'),
        ("wait=true&waitTimeout=", 'invalid value for "waitTimeout"'),
        ("waitTimeout=1", '"waitTimeout" needs wait=true'),
        ("wait=true&quorum=true&waitTimeout=1", '"waitTimeout" needs wait=true'),
        ("actions=set", '"actions" needs wait=true'),
        ("level=1", '"level" needs wait=true'),
        ("wait=true&progress=1", '"progress" needs stream=true'),
        ("wait=true&stream=true&progress=x", 'invalid value for "progress"'),
        ("wait=true&level=1", '"level" needs recursive=true'),
        ("wait=true&recursive=true&level=0", 'invalid value for "level"'),
        ("wait=true&actions=set,foo", 'invalid value for "actions"'),
        ("wait=true&actions=", 'invalid value for "actions"'),
        ("wait=true&hidden=maybe", 'invalid value for "hidden"'),
        ("wait=true&limit=1", '"limit" cannot be used with "wait"'),
        ("wait=true&raw=true", '"raw" cannot be used with "wait"'),
        ("wait=true&keysOnly=true&base64=true", '"base64" cannot be used with "keysOnly"'),
        ("wait=true&maxValue=10485761", 'invalid value for "maxValue"'),
    ],
)
def test_what_is_wrong_is_named(client, query, cause):
    answer = client.request("GET", f"/v2/keys/a?{query}")
    error = answer.json
    assert (answer.status, error["errorCode"], error["cause"]) == (400, 209, cause)
    assert (error["index"], answer.index) == (0, 0)


def test_a_long_poll_goes_on_until_an_event_passes(server, client, key):
    watch = server.watch(key, recursive="true", actions="delete", level=1)
    client.put(f"{key}/a/b", "1")
    client.delete(f"{key}/a/b")
    index = client.delete(f"{key}/a", recursive="true").index
    client.delete(key, dir="true")
    assert watch.event()["node"]["modifiedIndex"] == index
    assert watch.body() == b""
    server.wait_for_watchers(0)


def test_a_client_that_leaves_is_forgotten(server, key):
    watches = [server.watch(key, actions="set", waitTimeout=n) for n in (60, 3600)]
    watches += [server.watch(key, stream="true", hidden="true", recursive="true")]
    server.wait_for_watchers(3)
    for watch in watches:
        watch.close()
    server.wait_for_watchers(0)


FILTERS: list[dict[str, str]] = [
    {"actions": "create,delete"},
    {"actions": "create,delete,expire", "recursive": "true"},
    {"level": "1", "recursive": "true"},
    {"level": "2", "recursive": "true", "actions": "set,update"},
    {"hidden": "true", "recursive": "true"},
    {"refreshes": "true", "recursive": "true"},
    {"refreshes": "true", "hidden": "true", "level": "1", "recursive": "true"},
    {"refreshes": "true", "actions": "compareAndSwap", "recursive": "true"},
]


def passes(event: Any, key: str, query: dict[str, str]) -> bool:
    """Return whether an event of the whole store is for a watch of a key, as the manual says."""
    action, at = event["action"], event["node"]["key"]
    if "actions" in query and action not in query["actions"].split(","):
        return False
    if event.get("refresh") and "refreshes" not in query:
        return False
    removal = action in ("delete", "compareAndDelete", "expire")
    if at == key:
        return True
    if not at.startswith(key + "/"):
        return removal and (key + "/").startswith(at.rstrip("/") + "/")
    below = at[len(key) :]
    if "recursive" not in query or ("level" in query and below.count("/") > int(query["level"])):
        return False
    return "hidden" in query or "/_" not in below


@pytest.mark.parametrize("seed", range(2))
def test_each_filter_is_a_filtering_of_everything(make_server, seed):
    server = make_server().start()
    client = server.client()
    key = "/k"
    everything = server.watch("/", stream="true", recursive="true", hidden="true", refreshes="true")
    queries = [query | {"stream": "true"} for query in FILTERS]
    live = [server.watch(key, **query) for query in queries]
    server.wait_for_watchers(1 + len(live))
    write_much(client, key, Random(seed))
    end = client.put("/end", "1").index
    events = []
    while not events or events[-1]["node"]["modifiedIndex"] < end:
        events.append(everything.event())
    everything.close()
    assert any(event.get("refresh") for event in events)
    for query, watch in zip(queries, live, strict=True):
        expected = [event for event in events if passes(event, key, query)]
        assert expected, query
        assert [watch.event() for _ in expected] == expected, query
        watch.close()
        # From the history, where hidden names are not looked at.
        replayed = {name: text for name, text in query.items() if name != "stream"}
        seen = [event for event in events if passes(event, key, replayed | {"hidden": "true"})]
        asked = urlencode({**query, "wait": "true", "waitIndex": "1", "waitTimeout": "0.2"})
        _, chunks = end_of(server, f"{key}?{asked}")
        assert [json.loads(chunk) for chunk in chunks] == seen, query


def test_values_in_other_shapes(server, client, key):
    old, new = "é" * 50_000 + "<", "\x01" * 300_000
    index = client.put(key, old).index
    client.put(key, new)
    plain = client.get(key, wait="true", waitIndex=index + 1).json
    size_old, size_new = len(old.encode()), len(new)

    def received(**query: str) -> Any:
        asked = urlencode({"wait": "true", "waitIndex": str(index + 1), **query})
        return client.request("GET", f"/v2/keys{key}?{asked}").json

    without = received(keysOnly="true")
    for node in ("node", "prevNode"):
        assert without[node] == {k: v for k, v in plain[node].items() if k != "value"}
    encoded = received(base64="true")
    assert encoded["node"]["value"] == b64encode(new.encode()).decode()
    assert encoded["prevNode"]["value"] == b64encode(old.encode()).decode()
    assert encoded["node"]["encoding"] == "base64"
    for most in (0, 1, 7, 70_001, 200_000):
        cut = received(maxValue=str(most))
        assert cut["node"]["value"] == new[:most]
        assert cut["prevNode"]["value"] == old[: most // 2]
        assert (cut["node"]["size"], cut["prevNode"]["size"]) == (size_new, size_old)
    assert received(actions="set") == plain


def test_many_with_the_same_shape(server, client, key):
    queries = [{"keysOnly": "true"}, {"maxValue": "3"}, {"actions": "set"}]
    watches = [server.watch(key, stream="true", **query) for query in queries for _ in range(20)]
    server.wait_for_watchers(60)
    for n in range(5):
        client.put(key, f"value {n}")
    for place, watch in enumerate(watches):
        for n in range(5):
            value = watch.event()["node"].get("value")
            assert value == (None, "val", f"value {n}")[place // 20]
        watch.close()
