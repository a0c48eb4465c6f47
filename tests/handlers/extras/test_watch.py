"""Extras of watches, over HTTP: filters, shapes, ends, progress, server-sent events."""

import json
import secrets
from base64 import b64encode
from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.handlers.keys.test_answer_memory import CONTROL, held_bytes, lazy_clients, put_large
from tests.http.test_limits import MIB, peak_bytes, rejected, wait_until
from tests.support.raw import Raw, request
from tests.support.server import Client, Server

EVENTS = "Accept: text/event-stream"


@pytest.fixture
def key() -> str:
    return f"/{secrets.token_hex(4)}"


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


def test_a_watch_ends_after_its_time(server, client, key):
    index = client.put(key, "1").index
    for query in ("", "&stream=true", f"&waitIndex={index + 1}", "&recursive=true&stream=true"):
        head, chunks = end_of(server, f"{key}?wait=true&waitTimeout=0.1{query}")
        assert (head.status, chunks) == (200, [])
        assert int(head.headers["x-etcd-index"]) == index
        assert head.headers["content-type"] == "application/json"
    server.wait_for_watchers(0)


def test_time_counts_from_what_was_told_last(server, client, key):
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
            told = list(raw.chunks())
        if told:
            assert json.loads(told[0])["node"]["modifiedIndex"] == index
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


def test_progress_is_told_when_nothing_else_is(server, client, key):
    client.put(key, "1")
    watch = server.watch(key, stream="true", progress="0.1", actions="delete")
    other = client.put(f"{key}-other", "1").index
    while (told := watch.event())["index"] < other:
        assert told["action"] == "progress"
    client.delete(key)
    while (told := watch.event())["action"] == "progress":
        pass
    assert told["action"] == "delete"
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


# Filters, against a stream of everything


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


# Shapes


def test_values_in_other_shapes(server, client, key):
    old, new = "é" * 50_000 + "<", "\x01" * 300_000
    index = client.put(key, old).index
    client.put(key, new)
    plain = client.get(key, wait="true", waitIndex=index + 1).json
    size_old, size_new = len(old.encode()), len(new)

    def told(**query: str) -> Any:
        asked = urlencode({"wait": "true", "waitIndex": str(index + 1), **query})
        return client.request("GET", f"/v2/keys{key}?{asked}").json

    without = told(keysOnly="true")
    for node in ("node", "prevNode"):
        assert without[node] == {k: v for k, v in plain[node].items() if k != "value"}
    encoded = told(base64="true")
    assert encoded["node"]["value"] == b64encode(new.encode()).decode()
    assert encoded["prevNode"]["value"] == b64encode(old.encode()).decode()
    assert encoded["node"]["encoding"] == "base64"
    for most in (0, 1, 7, 70_001, 200_000):
        cut = told(maxValue=str(most))
        assert cut["node"]["value"] == new[:most]
        assert cut["prevNode"]["value"] == old[: most // 2]
        assert (cut["node"]["size"], cut["prevNode"]["size"]) == (size_new, size_old)
    assert told(actions="set") == plain


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


# Server-sent events


def test_a_page_is_told_every_event_once_over_restarts(make_server):
    server = make_server().start()
    told: list[int] = []
    last_id = ""
    for life in range(4):
        with Page(server, "/app?wait=true&recursive=true&waitIndex=1", last_id) as page:
            assert page.head.status == 200
            assert page.head.headers["content-type"] == "text/event-stream"
            assert page.head.headers["cache-control"] == "no-store"
            client = server.client()
            for n in range(5):
                client.put(f"/app/{n}", f"{life}\n{n}")
            for n in range(5):
                event = page.event()
                assert event is not None
                name, data = event
                assert name == data["action"] == "set"
                assert data["node"]["value"] == f"{life}\n{n}"
                assert page.last_id == str(data["node"]["modifiedIndex"])
                told.append(data["node"]["modifiedIndex"])
            last_id = page.last_id
            for n in range(3):  # while it is away
                client.put(f"/app/{n}", "away")
            if life % 2:
                server.kill()
            else:
                server.terminate()
        server.start()
        with Page(server, "/app?wait=true&recursive=true", last_id) as page:
            for _ in range(3):
                event = page.event()
                assert event is not None
                told.append(event[1]["node"]["modifiedIndex"])
            last_id = page.last_id
    assert told == list(range(2, 2 + 4 * 8))


def test_a_page_hears_once_that_it_has_lost_events(make_server):
    server = make_server("--event-history-limit", "10").start()
    client = server.client()
    for n in range(30):
        index = client.put("/a", n).index
    with Page(server, "/a?wait=true", "3") as page:
        event = page.event()
        assert event is not None
        name, data = event
        assert (name, data["errorCode"], page.last_id) == ("lost", 401, str(index))
        assert page.event() is None
    with Page(server, "/a?wait=true", page.last_id) as page:
        client.put("/a", "new")
        event = page.event()
        assert event is not None
        assert event[1]["node"]["value"] == "new"
    # Others get the error of etcd.
    answer = client.get("/a", wait="true", waitIndex=3, waitTimeout="60")
    assert (answer.status, answer.json["errorCode"]) == (400, 401)


def test_a_page_with_filters_progress_and_large_values(server, client, key):
    with Page(server, f"{key}?wait=true&actions=update&progress=0.1&recursive=true") as page:
        index = client.put(f"{key}/a", "1").index
        while (event := page.event()) != ("progress", {"index": index}):
            assert event is not None
            assert event[0] == "progress"
        assert page.last_id == str(index)
        value = "\u2028\n" * 100_000
        client.request("PUT", f"/v2/keys{key}/a?prevExist=true", {"value": value})
        while (event := page.event()) and event[0] == "progress":
            pass
        assert event is not None
        assert event[1]["node"]["value"] == value


def test_what_is_no_watch_or_names_other_types_is_json(client, server, key):
    client.put(key, "1")
    accepts = {"Accept": "text/event-stream"}
    assert client.request("GET", f"/v2/keys{key}", headers=accepts).json["action"] == "get"
    query = f"/v2/keys{key}?wait=true&waitIndex=1&waitTimeout=0.1"
    for accept in ("*/*", "text/*", "application/json", "text/event-stream;q=0"):
        answer = client.request("GET", query, headers={"Accept": accept})
        assert answer.headers["content-type"] == "application/json", accept
    bad = client.request(
        "GET", f"/v2/keys{key}?wait=true", headers=accepts | {"Last-Event-ID": "x"}
    )
    assert (bad.status, bad.json["cause"]) == (400, 'invalid value for "Last-Event-ID"')


@pytest.mark.parametrize("shape", ["maxValue={}", "maxValue={}&base64=true"])
def test_copies_for_watches_cut_no_answer_of_others(make_server, shape):
    # Large values that are shown in shapes of their own, to clients that do not read: each of them
    # would push out what others, the honest reader among them, are being sent.
    server = make_server("--max-buffered-bytes", str(16 * MIB), "--write-timeout-s", "600").start()
    client = server.client()
    put_large(client, "/v", "x" * (2 * MIB))
    put_large(client, "/other", CONTROL * (2 * MIB))
    before = peak_bytes(server)
    asked = [request("GET", "/v2/keys/other")]
    for number in range(60):
        query = f"wait=true&stream=true&{shape.format(MIB + number)}"
        asked.append(request("GET", f"/v2/keys/v?{query}"))
    with lazy_clients(server, asked) as (other, *watches):
        assert {raw.head().status for raw in (other, *watches)} == {200}
        put_large(client, "/v", "y" * (2 * MIB))
        # The last of them is told, or cut, in a turn to come.
        wait_until(lambda: rejected(client, "no_room_for_answer") > 0)
        assert client.put("/small", 1).status == 201
        assert held_bytes(client) < 16 * MIB
        assert peak_bytes(server) - before < 64 * MIB
        assert rejected(client, "answer_not_read") == 0
        assert json.loads(b"".join(other.chunks()))["node"]["value"] == CONTROL * (2 * MIB)
