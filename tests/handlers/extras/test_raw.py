"""Raw values, over HTTP: `/v2/raw/KEY`, `?raw=true`, an Accept header; entity tags, conditions."""

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.support.guarded import AL, DENIED, ROOT, ask_for_users
from tests.support.memory import MIB, rejected
from tests.support.raw import Raw, request
from tests.support.raw_values import VALUES, get, put
from tests.support.server import Server, running


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_it_was(client, key, name):
    value = VALUES[name]
    made = put(client, key, value, "?noValueOnSuccess=true")
    assert (made.status, made.body) == (201, b'{"action":"set"}\n')
    ways = (
        lambda method: get(client, key, method),
        lambda method: client.request(method, f"/v2/keys{key}?raw=true"),
        lambda method: client.request(method, f"/v2/keys{key}", headers={"Accept": "text/plain"}),
    )
    is_text = value.decode("utf-8", "replace").encode() == value
    for way in ways:
        answer, head = way("GET"), way("HEAD")
        assert (answer.status, head.status) == (200, 200)
        assert answer.body == value
        assert head.body == b""
        assert answer.headers | {"date": ""} == head.headers | {"date": ""}
        headers = answer.headers
        assert headers["content-type"] == (
            "text/plain; charset=utf-8" if is_text else "application/octet-stream"
        )
        assert headers["content-length"] == str(len(value))
        assert headers["etag"] == f'"{made.index}"'
        assert headers["x-kvd-modified-index"] == headers["x-kvd-created-index"] == str(made.index)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"] == "sandbox"
        assert answer.index >= made.index
        for one in ("x-etcd-cluster-id", "x-raft-index", "x-raft-term"):
            assert one in headers
        assert "x-kvd-ttl" not in headers


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/html", "x"])
def test_the_body_is_the_value_whatever_its_type(client, key, content_type):
    body = b"value=1&dir=true&%zz"
    answer = client.request("PUT", f"/v2/raw{key}", body, {"Content-Type": content_type})
    assert answer.json["node"]["value"] == body.decode()
    assert get(client, key).body == body


def test_a_write_is_answered_as_by_the_key_space(client, key):
    raw = put(client, f"{key}/a", b"<1>", "?ttl=100")
    plain = client.put(f"{key}/b", "<1>", ttl=100)
    assert raw.status == plain.status == 201
    assert raw.headers.keys() == plain.headers.keys()
    nodes = raw.json["node"], plain.json["node"]
    for node in nodes:
        for name in ("key", "expiration", "modifiedIndex", "createdIndex"):
            del node[name]
    assert nodes[0] == nodes[1]
    assert get(client, f"{key}/a").headers["x-kvd-ttl"] in ("99", "100")


def test_a_path_is_cleaned_as_in_the_key_space(client, key):
    put(client, f"{key}/a%20b", b"1")
    assert client.get(f"{key}/a b".replace(" ", "%20")).json["node"]["value"] == "1"
    assert get(client, f"{key}/a%20b/").body == b"1"
    moved = client.request("GET", f"/v2/raw{key}//a%20b")
    assert (moved.status, moved.headers["location"]) == (301, f"/v2/raw{key}/a%20b")
    assert client.request("GET", "/v2/rawkey").status == 404


@pytest.mark.parametrize("path", ["", "/"])
def test_a_directory_has_no_value(client, key, path):
    client.put(f"{key}/x", 1)
    for target in (f"/v2/raw{path}", f"/v2/raw{key}{path}", f"/v2/keys{key}{path}?raw=true"):
        answer = client.request("GET", target)
        error = answer.json
        assert (answer.status, error["errorCode"]) == (403, 102)
        assert error["index"] == answer.index > 0
        assert answer.headers["content-type"] == "application/json"
    accepts = client.request("GET", f"/v2/keys{key}", headers={"Accept": "text/plain"})
    assert accepts.status == 403
    assert put(client, key, b"1").json["errorCode"] == 102


def test_errors_are_json(client, key):
    for method in ("GET", "DELETE"):
        answer = client.request(method, f"/v2/raw{key}")
        assert answer.json["errorCode"] == 100
        assert answer.headers["content-type"] == "application/json"
    assert client.request("GET", f"/v2/raw{key}?wait=true").json["errorCode"] == 209
    assert client.request("GET", f"/v2/raw{key}?recursive=x").json["errorCode"] == 209


def test_other_methods_are_none(client, key):
    for method in ("POST", "PATCH"):
        answer = client.request(method, f"/v2/raw{key}", b"1")
        assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")
        assert answer.headers["allow"] == "HEAD,GET,PUT,DELETE"
    assert client.request("OPTIONS", f"/v2/raw{key}").status == 200


@pytest.mark.parametrize(
    ("accept", "is_raw"),
    [
        ("text/plain", True),
        ("application/octet-stream", True),
        ("Text/*;q=0.5", True),
        ("text/plain, application/json;q=0", True),
        ("text/html, text/plain", True),
        ("*/*", False),
        ("text/plain, */*;q=0.1", False),
        ("application/json, text/plain, */*", False),
        ("application/json", False),
        ("application/*, text/plain", False),
        ("text/plain;q=0", False),
        ("text/html", False),
        ("text/event-stream", False),
        ("", False),
        (",;,", False),
    ],
)
def test_an_accept_header_asks_for_the_value_or_for_json(client, key, accept, is_raw):
    client.put(key, "v")
    answer = client.request("GET", f"/v2/keys{key}", headers={"Accept": accept})
    assert answer.body == b"v" if is_raw else answer.json["node"]["value"] == "v"


def test_what_a_parameter_asks_for_comes_before_the_header(client, key):
    client.put(f"{key}/x", "v")
    for query in ("count=true", "keysOnly=true", "base64=true", "find=v", "maxValue=1"):
        answer = client.request("GET", f"/v2/keys{key}?{query}", headers={"Accept": "text/plain"})
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"


def test_a_watch_receives_json_whatever_is_accepted(server, client, key):
    client.put(key, "v")
    index = client.get(key).json["node"]["modifiedIndex"]
    target = f"/v2/keys{key}?wait=true&waitIndex={index}"
    answer = client.request("GET", target, headers={"Accept": "text/plain", "If-None-Match": "*"})
    assert answer.json["node"]["value"] == "v"


def test_a_write_is_answered_in_json_whatever_is_accepted(client, key):
    answer = client.request("PUT", f"/v2/keys{key}", {"value": 1}, {"Accept": "text/plain"})
    assert answer.json["action"] == "set"


def test_a_directory_is_removed_as_in_the_key_space(client, key):
    client.put(f"{key}/x", 1)
    assert get(client, key, "DELETE").json["errorCode"] == 102
    assert client.request("DELETE", f"/v2/raw{key}?recursive=true").json["action"] == "delete"


def test_a_value_is_limited_as_any_other(make_server):
    client = make_server("--max-value-bytes", "1000").start().client()
    assert put(client, "/k", b"v" * 1000).status == 201
    answer = put(client, "/k", b"w" * 1001)
    cause = "the value has more than the 1000 bytes that are allowed"
    assert (answer.json["errorCode"], answer.json["cause"]) == (210, cause)
    assert rejected(client, "value_too_large") == 1
    assert get(client, "/k").body == b"v" * 1000
    deep = put(client, "/a" * 5000, b"v")
    assert deep.json["errorCode"] == 209


def test_a_body_beyond_the_limit_is_not_awaited(server):
    with Raw(server.port) as raw:
        raw.send(b"PUT /v2/raw/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
        raw.send_what_fits(b"x" * (11 * MIB), timeout_s=5)
        answer = raw.answer()
        assert answer.json["errorCode"] == 210
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("pieces", [1, 7])
def test_a_body_in_chunks_and_after_a_permission(server, key, pieces):
    value = os.urandom(70_000)
    head = f"PUT /v2/raw{key} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\n"
    with Raw(server.port) as raw:
        raw.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        assert raw.head().status == 100
        size = len(value) // pieces
        for start in range(0, len(value), size):
            piece = value[start : start + size]
            raw.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        raw.send(b"0\r\n\r\n")
        assert raw.answer().status == 201
        raw.send(request("GET", f"/v2/raw{key}"))
        assert raw.answer().body == value


def test_unread_large_values_are_bounded(make_server):
    server = make_server("--max-buffered-bytes", str(20 * MIB)).start()
    client = server.client()
    value = os.urandom(3 * MIB)
    put(client, "/v", value, "?noValueOnSuccess=true")
    with contextlib.ExitStack() as stack:
        lazy = [stack.enter_context(Raw(server.port, receive_buffer=4096)) for _ in range(20)]
        for raw in lazy:
            raw.send(request("GET", "/v2/raw/v"))
        assert [raw.head().status for raw in lazy] == [200] * 20
        assert rejected(client, "answer_not_read") == 0
        assert get(client, "/v").body == value


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for started in running(Server(tmp_path_factory.mktemp("guarded"))):
        ask_for_users(started.client())
        role = '{"role":"al","grant":{"kv":{"read":["/read"],"write":["/write"]}}}'
        changed = started.client().request("PUT", "/v2/auth/roles/al", role, ROOT)
        assert changed.status == 200
        yield started


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_other_users_are_refused(guarded, method):
    client = guarded.client()
    for headers in ({}, AL, {"Authorization": "Basic x"}):
        answer = client.request(method, "/v2/raw/other", b"v" * 100, headers)
        assert answer.status == 401
        if method != "HEAD":
            assert answer.json == DENIED


def test_allowed_users_are_let_in(guarded):
    client = guarded.client()
    assert client.request("PUT", "/v2/raw/al/x", b"v", AL).status == 201
    for target in ("/v2/raw/al/x", "/v2/keys/al/x?raw=true"):
        assert client.request("GET", target, headers=AL).body == b"v"
    accepts = client.request("GET", "/v2/keys/al/x", headers=AL | {"Accept": "text/plain"})
    assert accepts.body == b"v"
    assert client.request("DELETE", "/v2/raw/al/x", headers=AL).status == 200


def test_users_that_may_only_write_are_shown_no_value(guarded):
    client = guarded.client()
    client.request("PUT", "/v2/raw/write", b"secret", ROOT)
    answer = client.request("PUT", "/v2/raw/write", b"mine", AL)
    assert answer.status == 200
    assert b"secret" not in answer.body
    failed = client.request("PUT", "/v2/raw/write?prevValue=guess", b"x", AL)
    assert failed.status == 412
    assert b"mine" not in failed.body
    assert client.request("GET", "/v2/raw/write", headers=AL).status == 401


def test_no_body_is_taken_before_its_sender_is_known(guarded):
    with Raw(guarded.port) as raw:
        raw.send(b"PUT /v2/raw/al/x HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000\r\n\r\n")
        answer = raw.answer()
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
