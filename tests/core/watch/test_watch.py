"""Watches: each event once, in order, live and from history."""

import json
import resource
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.raw import Raw, request
from tests.support.waiting import wait_until
from tests.support.watching import index_of, indexes, watchers


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


def test_the_head_comes_at_once_and_names_the_index_the_watch_began_at(server, client, at):
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


def test_history_delivers_what_was_delivered_live(server, client, at):
    live = server.watch(at, stream="true", recursive="true")
    start = client.put(f"{at}/a", 1, ttl=100).index
    client.put(f"{at}/a", 2, ttl=50)
    client.delete(f"{at}/a")
    bodies = [live._response.readline() for _ in range(3)]
    history = server.watch(at, stream="true", recursive="true", waitIndex=start)
    assert [history._response.readline() for _ in range(3)] == bodies


def test_declined_values_are_delivered_to_watchers(server, client, at):
    watch = server.watch(at)
    assert client.put(at, "v", noValueOnSuccess="true").json == {"action": "set"}
    assert watch.event()["node"]["value"] == "v"


def test_a_long_poll_receives_one_event(server, client, at):
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


def test_children_expire_before_their_directory(server, client, at):
    watch = server.watch(at, stream="true", recursive="true")
    client.put(f"{at}/d/late", 1, ttl=100)
    client.put(f"{at}/d/early", 1, ttl=1)
    last = client.put(f"{at}/d", prevExist="true", ttl=1).index
    assert indexes(watch, last) == [last - 2, last - 1, last]
    received = [watch.event() for _ in range(2)]
    assert [event["node"] for event in received] == [
        {"key": f"{at}/d/early", "modifiedIndex": last + 1, "createdIndex": last - 1},
        {"key": f"{at}/d", "dir": True, "modifiedIndex": last + 2, "createdIndex": last - 2},
    ]
    assert all(event["action"] == "expire" for event in received)
    assert "value" in received[0]["prevNode"]


def raise_file_limit(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"this machine allows a process {hard} files, the test needs {wanted}")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def test_two_thousand_watchers_receive_it_once_each(server, client, at):
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
            received = [json.loads(next(chunks))["node"]["modifiedIndex"]]
            if number % 2:
                received.append(json.loads(next(chunks))["node"]["modifiedIndex"])
                assert received == [first, second]
            else:
                assert received == [first]
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
