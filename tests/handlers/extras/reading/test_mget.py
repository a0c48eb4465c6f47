"""`POST /v2/mget`, over HTTP."""

import json
import secrets
import threading
from collections.abc import Iterator

import pytest

from tests.support.guarded import AL, DENIED, ROOT, ask_for_users
from tests.support.memory import MIB, rejected
from tests.support.server import Answer, Client, Server, running


@pytest.fixture
def key() -> str:
    return f"/{secrets.token_hex(4)}"


def mget(client: Client, body: object, **headers: str) -> Answer:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.request("POST", "/v2/mget", text, {"Content-Type": "application/json"} | headers)


def test_keys_come_in_the_order_asked_for(client, key):
    made = [client.put(f"{key}/{name}", f"<{name}>").json["node"] for name in "abc"]
    client.put(f"{key}/t", "v", ttl=100)
    asked = [f"{key}/c", f"{key}/a", f"{key}/none", f"{key}/a", key, f"{key}/a/x", f"{key}/t", "/"]
    answer = mget(client, {"keys": asked})
    assert answer.status == 200
    index, body = answer.index, answer.json
    assert (body["action"], body["index"]) == ("mget", index)
    found = body["nodes"]
    assert found[0] == made[2]
    assert found[1] == found[3] == made[0]
    missing = {"errorCode": 100, "message": "Key not found", "cause": f"{key}/none"}
    assert found[2] == missing | {"index": index}
    assert (found[4]["dir"], "nodes" in found[4]) == (True, False)
    assert found[5]["errorCode"] == 104
    assert found[6]["ttl"] in (99, 100)
    assert found[7] == {"key": "/", "dir": True}
    assert answer.headers["content-type"] == "application/json"


def test_keys_alone(client, key):
    node = client.put(f"{key}/a", "v").json["node"]
    del node["value"]
    answer = mget(client, {"keys": [f"{key}/a", key], "keysOnly": True})
    assert answer.json["nodes"][0] == node
    assert answer.json["nodes"][1]["dir"] is True


def test_a_key_is_cleaned_as_a_path_is(client, key):
    client.put(f"{key}/ab", "v")
    for asked in (f"{key}//ab", f"{key}/./ab/", f"/x/..{key}/ab"):
        assert mget(client, {"keys": [asked]}).json["nodes"][0]["value"] == "v"


def test_any_type_of_body_is_read(client, key):
    client.put(key, "v")
    body = json.dumps({"keys": [key]})
    assert client.request("POST", "/v2/mget", body).json["nodes"][0]["value"] == "v"


@pytest.mark.parametrize(
    ("body", "code", "cause"),
    [
        (b"", 210, "the body is no JSON object"),
        (b"{", 210, "the body is no JSON object"),
        (b"[" * 100_000, 210, "the body is no JSON object"),
        (b'["/a"]', 210, "the body is no JSON object"),
        (b'{"keys":["/\xff"]}', 210, "the body is no JSON object"),
        ({}, 209, "keys: a list of keys is wanted"),
        ({"keys": []}, 209, "keys: a list of keys is wanted"),
        ({"keys": "/a"}, 209, "keys: a list of keys is wanted"),
        ({"keys": ["/a"] * 1001}, 209, "keys: there are 1001, 1000 are allowed"),
        ({"keys": ["/a", 1]}, 209, "keys[1]: a string is wanted"),
        ({"keys": ["a"]}, 209, "keys[0]: a key begins with a slash"),
        ({"keys": [""]}, 209, "keys[0]: a key begins with a slash"),
        (b'{"keys":["/\\ud800"]}', 209, "keys[0]: text is wanted"),
        ({"keys": ["/a"], "keysOnly": 1}, 209, "keysOnly: true or false is wanted"),
        ({"keys": ["/a"], "recursive": True}, 209, "recursive: there is no such field"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_named(client, body, code, cause):
    answer = mget(client, body)
    error = answer.json
    assert (answer.status, error["errorCode"], error["cause"]) == (400, code, cause)
    assert (error["index"], answer.index) == (0, 0)


def test_what_meets_a_limit_is_counted(make_server):
    client = make_server().start().client()
    mget(client, {"keys": ["/a"] * 1001})
    assert rejected(client, "too_many_keys") == 1
    too_long = mget(client, {"keys": ["/" + "a" * 300] * 900})
    assert (too_long.json["errorCode"], too_long.json["cause"]) == (210, "http: POST too large")
    assert rejected(client, "body_too_large") == 1
    assert mget(client, {"keys": ["/a" + "b" * 200] * 1000}).status == 200


def test_other_methods_are_none(client):
    for method in ("GET", "PUT", "DELETE"):
        answer = client.request(method, "/v2/mget", b"")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert client.request("POST", "/v2/mget/x", b"{}").status == 404


def test_large_values_among_them(client, key):
    values = {f"{key}/{n}": letter * size for n, (letter, size) in enumerate(
        [("a", 10), ("\x01", 70_000), ("b", 3 * MIB), ("\u2028é", 100_000), ("c", 1)]
    )}  # fmt: skip
    for name, value in values.items():
        client.request("PUT", f"/v2/raw{name}?noValueOnSuccess=true", value.encode())
    nodes = mget(client, {"keys": list(values) * 2}).json["nodes"]
    assert [node["value"] for node in nodes] == list(values.values()) * 2


def test_an_answer_that_is_too_large_is_refused(make_server):
    server = make_server("--max-response-bytes", str(4 * MIB)).start()
    client = server.client()
    client.request("PUT", "/v2/raw/v?noValueOnSuccess=true", b"v" * (3 * MIB))
    answer = mget(client, {"keys": ["/v"] * 1000})
    assert (answer.status, answer.json["errorCode"]) == (500, 300)
    assert rejected(client, "answer_too_large") == 1
    assert mget(client, {"keys": ["/v"]}).status == 200


def test_all_are_as_they_were_at_one_index(server, client, key):
    """One writer moves a unit from one key to the next, in order: what is read adds up."""
    names = [f"{key}/{n}" for n in range(400)]
    for name in names:
        client.put(name, 0)
    stop = threading.Event()

    def write() -> None:
        other = server.client()
        turn = 0
        while not stop.is_set():
            other.put(names[turn % len(names)], turn // len(names) + 1)
            turn += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            answer = mget(client, {"keys": names})
            values = [int(node["value"]) for node in answer.json["nodes"]]
            assert values == sorted(values, reverse=True), "a later key before an earlier one"
            assert values[0] - values[-1] <= 1
            newest = max(node["modifiedIndex"] for node in answer.json["nodes"])
            assert newest <= answer.json["index"] == answer.index
    finally:
        stop.set()
        writer.join()


# Who may what


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for started in running(Server(tmp_path_factory.mktemp("guarded"))):
        client = started.client()
        ask_for_users(client)
        for name in ("al/a", "al/b", "other"):
            assert client.request("PUT", f"/v2/keys/{name}", {"value": name}, ROOT).status == 201
        yield started


def test_each_key_is_judged(guarded):
    client = guarded.client()
    both = {"keys": ["/al/a", "/al/b"]}
    assert [n["value"] for n in mget(client, both, **AL).json["nodes"]] == ["al/a", "al/b"]
    for keys in (["/al/a", "/other"], ["/al/../other"], ["/"], ["/al"], ["/al/a"] * 999 + ["/x"]):
        answer = mget(client, {"keys": keys}, **AL)
        assert (answer.status, answer.json) == (401, DENIED)
    assert mget(client, {"keys": ["/al/a", "/other"]}, **ROOT).status == 200


def test_strangers_and_guests(guarded):
    client = guarded.client()
    for headers in ({}, {"Authorization": "Basic x"}, {"Authorization": "Basic YWw6d3Jvbmc="}):
        assert mget(client, {"keys": ["/al/a"]}, **headers).json == DENIED
    granted = '{"role":"guest","grant":{"kv":{"read":["/al/a"],"write":[]}}}'
    assert client.request("PUT", "/v2/auth/roles/guest", granted, ROOT).status == 200
    assert mget(client, {"keys": ["/al/a"]}).json["nodes"][0]["value"] == "al/a"
    assert mget(client, {"keys": ["/al/a"]}, Authorization="Basic x").status == 401
