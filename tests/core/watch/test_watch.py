"""Watches: who is told what, once, in order, live and from history."""

import http.client
import json
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, Client, Server, Watch, running

Told = list[tuple[str, str]]
"""Actions and keys of events."""


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that remembers ten events."""
    yield from running(Server(tmp_path_factory.mktemp("data"), "--event-history-limit", "10"))


@pytest.fixture
def at(request: pytest.FixtureRequest) -> str:
    """A directory of the test's own, not there yet."""
    return f"/{abs(hash(request.node.nodeid)):x}"


def index_of(client: Client) -> int:
    return client.get("/no-such-key").index


def watchers(client: Client) -> int:
    return client.request("GET", "/v2/stats/store").json["watchers"]


def wait_until(holds: Callable[[], bool]) -> None:
    """Ask again and again, which takes its time by itself."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it does not come true"


# The rules of matching: sections 8.3 and 8.4 of the recorded behaviour.


def do(client: Client, at: str, *steps: str) -> None:
    """Do what steps such as `PUT /a?value=1` say, below a directory."""
    for step in steps:
        method, target = step.removeprefix("REFUSED ").split(" ")
        answer = client.request(method, f"/v2/keys{at}{target}")
        assert (answer.status in (200, 201)) != step.startswith("REFUSED "), (step, answer)


def mark(client: Client, key: str) -> int:
    """Make an event that any watcher on a key is told; its index."""
    answer = client.put(key, prevExist="true", ttl=1000)
    if answer.status == 404:
        answer = client.put(key, "")
    assert answer.status in (200, 201), answer
    return answer.index


def told_until(watch: Watch, at: str, last_index: int) -> Told:
    """What a stream has told before the event with an index."""
    told = []
    while (event := watch.event())["node"]["modifiedIndex"] != last_index:
        told.append((event["action"], event["node"]["key"].removeprefix(at)))
    return told


class Rule(NamedTuple):
    """What a watcher is told of some steps; from history the same, unless said otherwise."""

    watched: str
    steps: list[str]
    told: Told
    before: tuple[str, ...] | list[str] = ()
    recursive: bool = False
    history: Told | None = None


SET_A = ("set", "/a")
RULES = {
    "set": Rule("/a", ["PUT /a?value=1"], [SET_A]),
    "create": Rule("/a", ["PUT /a?prevExist=false"], [("create", "/a")]),
    "update": Rule("/a", ["PUT /a?prevExist=true"], [("update", "/a")], ["PUT /a"]),
    "compare-and-swap": Rule(
        "/a", ["PUT /a?prevValue=1"], [("compareAndSwap", "/a")], ["PUT /a?value=1"]
    ),
    "delete": Rule("/a", ["DELETE /a"], [("delete", "/a")], ["PUT /a"]),
    "compare-and-delete": Rule(
        "/a", ["DELETE /a?prevValue=1"], [("compareAndDelete", "/a")], ["PUT /a?value=1"]
    ),
    "directory made": Rule("/a", ["PUT /a?dir=true"], [SET_A]),
    "directory instead of a file": Rule("/a", ["PUT /a?dir=true"], [SET_A], ["PUT /a"]),
    "declined values": Rule("/a", ["PUT /a?value=1&noValueOnSuccess=true"], [SET_A]),
    "refresh": Rule("/a", ["PUT /a?refresh=true&ttl=99"], [], ["PUT /a?value=1"]),
    "refreshing update": Rule(
        "/a", ["PUT /a?refresh=true&ttl=99&prevExist=true"], [], ["PUT /a?value=1"]
    ),
    "refreshing compare-and-swap": Rule(
        "/a", ["PUT /a?refresh=true&ttl=99&prevValue=1"], [], ["PUT /a?value=1"]
    ),
    "refresh below": Rule(
        "/d", ["PUT /d/a?refresh=true&ttl=99"], [], ["PUT /d/a"], recursive=True
    ),
    "another key": Rule("/a", ["PUT /b", "PUT /ab", "PUT /a.b"], []),
    "refused": Rule(
        "/a", ["REFUSED PUT /a?prevExist=false", "REFUSED DELETE /a/b"], [], ["PUT /a"]
    ),
    "child, recursive": Rule("/d", ["PUT /d/a"], [("set", "/d/a")], recursive=True),
    "grandchild, recursive": Rule(
        "/d", ["PUT /d/e/f/g"], [("set", "/d/e/f/g")], recursive=True
    ),
    "child, not recursive": Rule("/d", ["PUT /d/a", "PUT /d/b/c", "DELETE /d/a"], []),
    "implicit parent": Rule("/d", ["PUT /d/e/f"], []),
    "sibling with the same beginning": Rule(
        "/d", ["PUT /dd/a", "PUT /d-", "DELETE /dd?recursive=true"], [], recursive=True
    ),
    "in order": Rule("/q", ["POST /q"], [("create", "/q/INDEX")], recursive=True),
    "directory updated": Rule(
        "/d", ["PUT /d?prevExist=true&ttl=99"], [("update", "/d")], ["PUT /d/a"]
    ),
    "directory deleted": Rule(
        "/d", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"]
    ),
    "directory deleted, recursive": Rule(
        "/d", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"], recursive=True
    ),
    "parent deleted": Rule(
        "/d/a/b", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"]
    ),
    "parent deleted, recursive": Rule(
        "/d/a", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"], recursive=True
    ),
    "empty parent deleted": Rule("/d/a", ["DELETE /d?dir=true"], [], ["PUT /d?dir=true"],
                                 history=[("delete", "/d")]),
    "parent of what never was deleted": Rule(
        "/d/none/x", ["DELETE /d?recursive=true"], [], ["PUT /d/a"], history=[("delete", "/d")]
    ),
    "parent of what was before deleted": Rule(
        "/d/a", ["DELETE /d?recursive=true"], [], ["PUT /d/a", "PUT /d/b", "DELETE /d/a"],
        history=[("delete", "/d")],
    ),
    "hidden parent deleted": Rule(
        "/_d/_a", ["DELETE /_d?recursive=true"], [("delete", "/_d")], ["PUT /_d/_a/_b"]
    ),
    "parent expired": Rule(
        "/d/a", ["PUT /d?prevExist=true&ttl=0", "AWAIT /d"], [("expire", "/d")], ["PUT /d/a"]
    ),
    "sibling of the deleted": Rule(
        "/pdzz/a", ["DELETE /pd?recursive=true"], [], ["PUT /pd/a", "PUT /pdzz/a"]
    ),
    "expired": Rule(
        "/a", ["PUT /a?ttl=0", "AWAIT /a"], [SET_A, ("expire", "/a")]
    ),
    "expired below": Rule(
        "/d", ["PUT /d/a?ttl=0", "AWAIT /d/a"], [("set", "/d/a"), ("expire", "/d/a")],
        recursive=True,
    ),
    "hidden": Rule(
        "/h", ["PUT /h/_a", "PUT /h/_d/b", "PUT /h/c/_e", "DELETE /h/_d?recursive=true"], [],
        recursive=True,
        history=[("set", "/h/_a"), ("set", "/h/_d/b"), ("set", "/h/c/_e"), ("delete", "/h/_d")],
    ),
    "hidden, named": Rule("/h/_a", ["PUT /h/_a"], [("set", "/h/_a")]),
    "below hidden": Rule(
        "/h/_d", ["PUT /h/_d/b", "PUT /h/_d/_e"], [("set", "/h/_d/b")], recursive=True,
        history=[("set", "/h/_d/b"), ("set", "/h/_d/_e")],
    ),
    "below hidden, from far above": Rule(
        "/h", ["PUT /h/_d/b/c"], [], recursive=True, history=[("set", "/h/_d/b/c")]
    ),
    "underscores elsewhere": Rule(
        "/h", ["PUT /h/a_/b_c"], [("set", "/h/a_/b_c")], recursive=True
    ),
    "hidden expired": Rule(
        "/h", ["PUT /h/_a?ttl=0", "AWAIT /h/_a"], [], recursive=True,
        history=[("set", "/h/_a"), ("expire", "/h/_a")],
    ),
}  # fmt: skip


def play(client: Client, at: str, steps: Iterable[str]) -> None:
    for step in steps:
        if step.startswith("AWAIT "):
            key = at + step.removeprefix("AWAIT ")
            wait_until(lambda key=key: client.get(key).status == 404)
        else:
            do(client, at, step)


def expected(told: Told, last: int) -> Told:
    return [(action, key.replace("INDEX", f"{last - 1:020}")) for action, key in told]


@pytest.mark.parametrize("name", RULES)
def test_live_a_watcher_is_told(server, client, at, name):
    rule = RULES[name]
    play(client, at, rule.before)
    watch = server.watch(at + rule.watched, stream="true", recursive=str(rule.recursive))
    play(client, at, rule.steps)
    last = mark(client, at + rule.watched)
    assert told_until(watch, at, last) == expected(rule.told, last)


@pytest.mark.parametrize("name", RULES)
def test_from_history_a_watcher_is_told(server, client, at, name):
    rule = RULES[name]
    play(client, at, rule.before)
    start = index_of(client) + 1
    play(client, at, rule.steps)
    last = mark(client, at + rule.watched)
    options = {"recursive": str(rule.recursive), "waitIndex": start}
    told = expected(rule.told if rule.history is None else rule.history, last)
    watch = server.watch(at + rule.watched, stream="true", **options)
    assert told_until(watch, at, last) == told
    # A watch that is no stream is told the first of them.
    event = server.watch(at + rule.watched, **options).event()
    assert (event["action"], event["node"]["key"].removeprefix(at)) == [
        *told, (event["action"], rule.watched)
    ][0]  # fmt: skip


def test_the_root_is_watched_like_any_directory(make_server):
    server = make_server().start()
    client = server.client()
    all_, root = (server.watch("/", stream="true", recursive=r) for r in ("true", "false"))
    client.put("/a", 1)
    client.put("/b/c/d", 1)
    client.put("/_h", 1)
    client.delete("/b", recursive="true")
    assert [all_.event()["node"]["key"] for _ in range(3)] == ["/a", "/b/c/d", "/b"]
    server.terminate()
    assert root.body() == b""


# One watch.


def test_the_head_comes_at_once_and_tells_where_the_watch_began(server, client, at):
    client.put(at, 1)
    now = client.get(at)
    watch = server.watch(at)
    assert watch.head.status == 200
    headers = watch.head.headers
    for name in ("x-etcd-index", "x-raft-index", "x-raft-term", "x-etcd-cluster-id"):
        assert headers[name] == now.headers[name]
    assert headers["content-type"] == "application/json"
    assert headers["transfer-encoding"] == "chunked"
    assert "content-length" not in headers
    client.put(at, 2)
    assert watch.head.index + 1 == watch.event()["node"]["modifiedIndex"]


@pytest.mark.parametrize("wait_index", ["history", "now", "future"])
def test_the_index_of_a_watch_is_that_of_its_begin(server, client, at, wait_index):
    client.put(at, 1)
    index = index_of(client)
    given = {"history": index, "now": index + 1, "future": index + 10}[wait_index]
    assert server.watch(at, waitIndex=given).head.index == index


def test_an_event_is_the_answer_of_its_writer(server, client, at):
    watch = server.watch(at, stream="true")
    for answer in (
        client.put(at, "<1>", ttl=100),
        client.put(at, "2"),
        client.put(at, "3", prevValue="2"),
        client.delete(at),
    ):
        assert watch.event() == answer.json


def test_history_tells_what_was_told_live(server, client, at):
    live = server.watch(at, stream="true", recursive="true")
    start = client.put(f"{at}/a", 1, ttl=100).index
    client.put(f"{at}/a", 2, ttl=50)
    client.delete(f"{at}/a")
    bodies = [live._response.readline() for _ in range(3)]
    history = server.watch(at, stream="true", recursive="true", waitIndex=start)
    assert [history._response.readline() for _ in range(3)] == bodies


def test_declined_values_are_told_to_watchers(server, client, at):
    watch = server.watch(at)
    assert client.put(at, "v", noValueOnSuccess="true").json == {"action": "set"}
    assert watch.event()["node"]["value"] == "v"


@pytest.mark.parametrize("history", [False, True])
def test_each_event_is_one_chunk(server, client, at, history):
    with Raw(server.port) as raw:
        start = client.put(at, 0).index + 1
        if history:
            client.put(at, 1)
        raw.send(request("GET", f"/v2/keys{at}?wait=true&waitIndex={start}"))
        assert raw.head().status == 200
        if not history:
            client.put(at, 1)
        (chunk,) = raw.chunks()
        assert chunk.endswith(b"}\n")
        assert json.loads(chunk)["node"]["value"] == "1"
        raw.send(request("GET", f"/v2/keys{at}?wait=true&stream=true&waitIndex={start}"))
        assert raw.head().status == 200
        for i in range(2, 10):
            client.put(at, i)
        stream = raw.chunks()
        assert [json.loads(next(stream))["node"]["value"] for _ in range(9)] == list("123456789")


def test_a_long_poll_is_told_one_event(server, client, at):
    watch = server.watch(at)
    client.put(at, 1)
    client.put(at, 2)
    (line,) = watch.body().splitlines()
    assert json.loads(line)["node"]["value"] == "1"


def test_a_slash_at_the_end_is_ignored(server, client, at):
    watch = server.watch(at + "/")
    client.put(at, 1)
    assert watch.event()["node"]["key"] == at


def test_a_quorum_read_does_not_wait(client, at):
    assert client.get(at, wait="true", quorum="true").status == 404
    client.put(at, 1)
    answer = client.get(at, wait="true", quorum="true")
    assert (answer.json["action"], answer.json["node"]["value"]) == ("get", "1")


@pytest.mark.parametrize("method", ["HEAD", "PUT", "POST", "DELETE"])
def test_only_get_waits(client, at, method):
    answer = client.request(method, f"/v2/keys{at}?wait=true")
    assert answer.status == 400
    if method != "HEAD":
        assert answer.json["errorCode"] == 209


def test_a_bad_parameter_is_answered_at_once(client, at):
    answer = client.get(at, wait="true", stream="true", waitIndex="x")
    assert (answer.status, answer.json["errorCode"]) == (400, 203)
    assert answer.headers["x-etcd-index"] == "0"


# waitIndex.


def test_no_wait_index_or_zero_waits_for_the_next_event(server, client, at):
    client.put(at, 1)
    watches = [server.watch(at), server.watch(at, waitIndex=0)]
    client.put(at, 2)
    assert [watch.event()["node"]["value"] for watch in watches] == ["2", "2"]


def test_a_past_wait_index_finds_the_first_event_from_there_on(server, client, at):
    indexes = [client.put(at, i).index for i in range(5)]
    other = client.put(at + "-other", 1).index
    for i, index in enumerate(indexes):
        assert server.watch(at, waitIndex=index).event()["node"]["value"] == str(i)
    watch = server.watch(at, waitIndex=other)
    client.put(at, "later")
    assert watch.event()["node"]["value"] == "later"


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_future_wait_index_passes_over_what_comes_before(server, client, at, stream):
    index = index_of(client)
    watch = server.watch(at, waitIndex=index + 3, stream=stream)
    for i in range(1, 5):
        client.put(at, i)
    assert watch.event()["node"] == {
        "key": at, "value": "3", "modifiedIndex": index + 3, "createdIndex": index + 3,
    }  # fmt: skip
    if stream == "true":
        assert watch.event()["node"]["value"] == "4"


def test_a_far_future_wait_index_waits(server, client, at):
    watch = server.watch(at, waitIndex=2**64 - 1)
    before = watchers(client)
    client.put(at, 1)
    assert watchers(client) == before
    watch.close()


def test_the_wait_index_of_a_refresh_finds_the_next_event(server, client, at):
    client.put(at, 1)
    refresh = client.put(at, refresh="true", ttl=100).index
    watch = server.watch(at, waitIndex=refresh)
    client.put(at, refresh="true", ttl=100)
    last = client.put(at, 2).index
    assert watch.event()["node"]["modifiedIndex"] == last == refresh + 2
    assert server.watch(at, waitIndex=refresh).event()["node"]["modifiedIndex"] == last


@pytest.mark.parametrize("stream", ["true", "false"])
def test_cleared_history_is_refused(forgetful, at, stream):
    client = forgetful.client()
    for i in range(25):
        client.put(at, i)
    index = index_of(client)
    oldest = index - 9
    for cleared in (1, oldest - 1):
        answer = client.get(at, wait="true", waitIndex=cleared, stream=stream)
        assert answer.status == 400
        assert answer.json == {
            "errorCode": 401,
            "message": "The event in requested index is outdated and cleared",
            "cause": f"the requested history has been cleared [{oldest}/{cleared}]",
            "index": index,
        }
        assert answer.index == index
        assert "x-raft-index" not in answer.headers
    watch = forgetful.watch(at, waitIndex=oldest, stream=stream)
    assert watch.event()["node"]["modifiedIndex"] == oldest


def test_refreshes_take_their_place_in_history(forgetful, at):
    client = forgetful.client()
    index = client.put(at, 1).index
    for _ in range(9):
        client.put(at, refresh="true", ttl=100)
    assert forgetful.watch(at, waitIndex=index).event()["node"]["modifiedIndex"] == index
    client.put(at, refresh="true", ttl=100)
    assert client.get(at, wait="true", waitIndex=index).json["errorCode"] == 401


def test_nothing_is_cleared_before_the_history_is_full(make_server):
    server = make_server("--event-history-limit", "10").start()
    client = server.client()
    for i in range(10):
        client.put("/a", i)
    assert server.watch("/a", waitIndex=1).event()["node"]["value"] == "0"
    client.put("/a", 10)
    assert client.get("/a", wait="true", waitIndex=1).json["cause"].endswith("[3/1]")


# Streams.


def test_a_stream_goes_on_from_history_to_live_events(server, client, at):
    start = index_of(client) + 1
    for i in range(50):
        client.put(f"{at}/{i % 7}", i)
    watch = server.watch(at, recursive="true", stream="true", waitIndex=start)
    for i in range(50, 100):
        client.put(f"{at}/{i % 7}", i)
    assert [watch.event()["node"]["value"] for _ in range(100)] == [str(i) for i in range(100)]


def test_streams_have_neither_gaps_nor_duplicates_while_others_write(server, at):
    writers, writes = 4, 100
    client = server.client()
    start = index_of(client) + 1
    failures: list[BaseException] = []

    def write(writer: int) -> None:
        try:
            own = server.client()
            for i in range(writes):
                assert own.put(f"{at}/{writer}", i).status in (200, 201)
        except BaseException as error:  # noqa: BLE001 -- told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=write, args=[i]) for i in range(writers)]
    for thread in threads:
        thread.start()
    # They begin at any time, from the first event or from now.
    options = {"recursive": "true", "stream": "true"}
    replays, lives = [], []
    while any(thread.is_alive() for thread in threads) and len(replays) < 40:
        replays.append(server.watch(at, waitIndex=start, **options))
        lives.append(server.watch(at, **options))
    for thread in threads:
        thread.join()
    assert failures == []
    last = index_of(client)
    assert last == start + writers * writes - 1
    client.put(f"{at}/end", "")
    for watch in replays:
        assert indexes(watch, last + 1) == list(range(start, last + 2))
    for watch in lives:
        assert indexes(watch, last + 1) == list(range(watch.head.index + 1, last + 2))


def indexes(watch: Watch, last: int) -> list[int]:
    """The indexes that a stream tells, up to the last."""
    seen = [watch.event()["node"]["modifiedIndex"]]
    while seen[-1] != last:
        seen.append(watch.event()["node"]["modifiedIndex"])
    return seen


@pytest.fixture
def heavy(make_server) -> Server:
    """A server whose history does not fit the buffers of a connection."""
    server = make_server("--event-history-limit", "60").start()
    client = server.client()
    for i in range(60):
        client.put("/heavy", f"{i:02}" * (100 << 10))
    return server


def test_a_replay_goes_no_faster_than_its_client_reads(heavy):
    client = heavy.client()
    with Raw(heavy.port, receive_buffer=4096) as slow:
        slow.send(request("GET", "/v2/keys/heavy?wait=true&stream=true&waitIndex=2"))
        assert slow.head().status == 200
        # Meanwhile others are served: also one that reads the same history.
        watch = heavy.watch("/heavy", stream="true", waitIndex=2)
        assert indexes(watch, 61) == list(range(2, 62))
        client.put("/end", "")
        stream = slow.chunks()
        told = [json.loads(next(stream))["node"] for _ in range(60)]
        assert [node["modifiedIndex"] for node in told] == list(range(2, 62))
        assert [node["value"][:2] for node in told] == [f"{i:02}" for i in range(60)]


def test_a_replay_that_history_has_left_behind_is_cut(heavy):
    client = heavy.client()
    with Raw(heavy.port, receive_buffer=4096) as slow:
        slow.send(request("GET", "/v2/keys/heavy?wait=true&stream=true&waitIndex=2"))
        assert slow.head().status == 200
        for i in range(60):
            client.put("/light", i)
        told = []
        with pytest.raises((AssertionError, ConnectionError, ValueError)):
            told.extend(json.loads(chunk)["node"]["modifiedIndex"] for chunk in slow.chunks())
    # (A list is extended item by item: what came before the cut is there.)
    assert told == list(range(2, 2 + len(told)))
    assert 0 < len(told) < 60


def test_a_replay_may_be_left_at_any_time(heavy):
    client = heavy.client()
    with ExitStack() as stack:
        slow = [stack.enter_context(Raw(heavy.port, receive_buffer=4096)) for _ in range(6)]
        for raw in slow:
            raw.send(request("GET", "/v2/keys/heavy?wait=true&stream=true&waitIndex=2"))
            assert raw.head().status == 200
        for raw, way in zip(slow, ("close", "reset") * 3, strict=True):
            getattr(raw, way)()
            client.put("/heavy", 1)
    wait_until(lambda: watchers(client) == 0)


def test_a_stream_is_told_its_own_end_once(server, client, at):
    client.put(f"{at}/d/a", 1)
    streams = [
        server.watch(f"{at}/d", stream="true", recursive="true"),
        server.watch(f"{at}/d", stream="true"),
        server.watch(f"{at}/d/a", stream="true"),
        server.watch(at, stream="true", recursive="true"),
    ]
    deleted = client.delete(f"{at}/d", recursive="true").index
    created = client.put(f"{at}/d", 2).index
    client.put(f"{at}/d", 3)
    for watch in (*streams[:2], streams[3]):
        assert indexes(watch, created + 1) == [deleted, created, created + 1]
    client.delete(f"{at}/d")
    last = client.put(f"{at}/d/a", 4).index
    assert indexes(streams[2], last) == [deleted, last]


def test_children_expire_before_their_directory(server, client, at):
    watch = server.watch(at, stream="true", recursive="true")
    client.put(f"{at}/d/late", 1, ttl=100)
    client.put(f"{at}/d/early", 1, ttl=1)
    last = client.put(f"{at}/d", prevExist="true", ttl=1).index
    assert indexes(watch, last) == [last - 2, last - 1, last]
    told = [watch.event() for _ in range(2)]
    assert [event["node"] for event in told] == [
        {"key": f"{at}/d/early", "modifiedIndex": last + 1, "createdIndex": last - 1},
        {"key": f"{at}/d", "dir": True, "modifiedIndex": last + 2, "createdIndex": last - 2},
    ]
    assert all(event["action"] == "expire" for event in told)
    assert "value" in told[0]["prevNode"]


# Many watches, and their end.


def raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this machine allows a process {hard} files, the test needs {wanted}")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def test_two_thousand_watchers_are_told_once_each(server, client, at):
    count = 2000
    raise_file_limit(count + 200)
    before = watchers(client)
    with ExitStack() as stack:
        waiting = [stack.enter_context(Raw(server.port)) for _ in range(count)]
        for number, raw in enumerate(waiting):
            stream = "&stream=true" if number % 2 else ""
            raw.send(request("GET", f"/v2/keys{at}?wait=true{stream}"))
        for raw in waiting:
            assert raw.head().status == 200
        assert watchers(client) == before + count
        first = client.put(at, 1).index
        # Nobody waits while they are told.
        assert client.get(at).json["node"]["value"] == "1"
        second = client.put(at, 2).index
        assert watchers(client) == before + count // 2
        for number, raw in enumerate(waiting):
            chunks = raw.chunks()
            told = [json.loads(next(chunks))["node"]["modifiedIndex"]]
            if number % 2:
                told.append(json.loads(next(chunks))["node"]["modifiedIndex"])
                assert told == [first, second]
            else:
                assert told == [first]
                assert list(chunks) == []
                assert raw.ask("GET", "/version").status == 200
    wait_until(lambda: watchers(client) == before)


def test_the_gauge_counts_those_that_wait(server, client, at):
    before = watchers(client)
    index = client.put(at, 1).index
    server.watch(at, waitIndex=index).event()  # from history: it never waited
    assert watchers(client) == before
    watches = [
        server.watch(at),
        server.watch(at, stream="true"),
        server.watch("/", waitIndex=2**40),
    ]
    assert watchers(client) == before + 3
    client.put(at, 2)
    assert watches[0].event()["node"]["value"] == "2"
    assert watchers(client) == before + 2
    for watch in watches:
        watch.close()
    wait_until(lambda: watchers(client) == before)


def test_a_stop_ends_all_watches_properly(make_server):
    server = make_server().start()
    client = server.client()
    client.put("/a", 1)
    watches = [
        server.watch("/a"),
        server.watch("/a", stream="true"),
        server.watch("/", recursive="true", waitIndex=100),
        server.watch("/a", stream="true", waitIndex=2),
    ]
    assert watches[3].event()["node"]["value"] == "1"
    started = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - started < 5
    for watch in watches:
        assert watch.head.status == 200
        assert watch.body() == b""  # and no IncompleteRead: the end is a proper one


def test_events_on_their_way_are_told_before_a_stop(make_server):
    server = make_server().start()
    client = server.client()
    watches = [server.watch("/a") for _ in range(600)]
    client.put("/a", 1)
    server.terminate()
    for watch in watches:
        assert json.loads(watch.body())["node"]["value"] == "1"


def test_a_killed_server_ends_watches_by_a_broken_connection(make_server):
    server = make_server().start()
    watch = server.watch("/a")
    server.kill()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        watch.body()


# Restarts.


@pytest.mark.parametrize("way", ["kill", "terminate"])
def test_history_survives_a_restart(make_server, way):
    server = make_server("--event-history-limit", "20").start()
    client = server.client()
    for i in range(30):
        client.put(f"/d/{i % 3}", i, **({"ttl": 1000} if i % 2 else {}))
    client.put("/d/0", refresh="true", ttl=1000)
    client.delete("/d", recursive="true")
    index = index_of(client)
    options = {"recursive": "true", "stream": "true", "waitIndex": index - 19}

    def history() -> list[Any]:
        watch = server.watch("/d", **options)
        return [watch._response.readline() for _ in range(19)]

    before = history()
    getattr(server, way)()
    server.start()
    client = server.client()
    assert index_of(client) == index
    assert history() == before
    cleared = client.get("/d", wait="true", waitIndex=index - 20)
    assert cleared.json["cause"].endswith(f"[{index - 19}/{index - 20}]")
    watch = server.watch("/d", waitIndex=index + 1)
    client.put("/d", 1)
    assert watch.event()["node"]["modifiedIndex"] == index + 1


def test_a_shorter_history_is_cut_and_a_longer_one_grows(make_server):
    server = make_server().start("--event-history-limit", "20")
    client = server.client()
    for i in range(30):
        client.put("/a", i)
    server.terminate()
    server.start("--event-history-limit", "5")
    client = server.client()
    index = index_of(client)
    assert client.get("/a", wait="true", waitIndex=index - 5).json["errorCode"] == 401
    assert server.watch("/a", waitIndex=index - 4).event()["node"]["value"] == "25"
    server.terminate()
    server.start("--event-history-limit", "20")
    client = server.client()
    for i in range(30, 40):
        client.put("/a", i)
    assert client.get("/a", wait="true", waitIndex=index - 5).json["errorCode"] == 401
    watch = server.watch("/a", stream="true", waitIndex=index - 4)
    assert [watch.event()["node"]["value"] for _ in range(15)] == [str(i) for i in range(25, 40)]
