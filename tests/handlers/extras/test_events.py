"""Server-sent events: every event once, losses, other media types."""

import json

import pytest

from tests.handlers.keys.test_answer_memory import CONTROL, held_bytes, lazy_clients, put_large
from tests.support.memory import MIB, peak_bytes, rejected
from tests.support.pages import Page
from tests.support.raw import request
from tests.support.waiting import wait_until


def test_a_page_receives_every_event_once_over_restarts(make_server):
    server = make_server().start()
    received: list[int] = []
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
                received.append(data["node"]["modifiedIndex"])
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
                received.append(event[1]["node"]["modifiedIndex"])
            last_id = page.last_id
    assert received == list(range(2, 2 + 4 * 8))


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
