"""Transactions that are refused: as a whole, by name, by their bodies and their users."""

import json
from collections.abc import Iterator
from random import Random

import pytest

from kvd.v2.commands import CreateInOrder
from kvd.v2.errors import ApiError
from kvd.v2.extras.txn import read_body
from tests.support.guarded import DENIED, ROOT, ask_for_users, basic
from tests.support.memory import MIB, rejected
from tests.support.server import Server, running
from tests.support.txn import op, txn


def test_one_refused_operation_refuses_all(client, key):
    client.put(f"{key}/file", "1")
    index = client.put(f"{key}/full/below", "1").index
    for refused in (
        op("create", f"{key}/file"),
        op("update", f"{key}/none"),
        op("compareAndSwap", f"{key}/file", value="2", prevValue="3"),
        op("delete", f"{key}/full", dir=True),
        op("delete", "/"),
        op("set", f"{key}/file/below"),
    ):
        others = [op("set", f"{key}/{n}") for n in range(3)]
        answer = txn(client, {"ops": [*others[:2], refused, *others[2:]]})
        error = answer.json
        if refused["key"] == "/":  # all keys are below the root
            assert error["errorCode"] == 209
            continue
        alone = txn(client, {"ops": [refused]}).json
        assert alone == error | {"op": 0}
        assert (error["op"], error["index"], answer.index) == (2, index, index)
        # As `/v2/keys` says of the same.
        assert error["errorCode"] in (100, 101, 104, 105, 108)
    assert client.get(key).index == index
    assert len(client.get(key).json["node"]["nodes"]) == 2


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        (["/a", "/b", "/a"], "operations 0 and 2: /a and /a"),
        (["/a/b", "/c", "/a"], "operations 0 and 2: /a/b and /a"),
        (["/a", "/ab", "/a!", "/a/b/c"], "operations 0 and 3: /a and /a/b/c"),
        (["/a", "/"], "operations 0 and 1: /a and /"),
        (["//a/", "/x/../a"], "operations 0 and 1: /a and /a"),
    ],
)
def test_operations_on_one_branch_are_refused(client, keys, cause):
    answer = txn(client, {"ops": [op("set", key) for key in keys]})
    assert (answer.status, answer.json["errorCode"]) == (400, 209)
    assert (answer.json["cause"], answer.json["index"]) == (cause, 0)


_SET = op("set", "/a")


@pytest.mark.parametrize(
    ("body", "code", "cause"),
    [
        *((text, 210, "the body is no JSON object") for text in (
            b"", b"{", b"[]", b"null", b'{"ops":[]', b'{"ops":[]}x', b'{"ops":[],}', b'{"ops" []}',
            b'{"ops":[{"action":"set" "key":"/a"}]}', b'{"ops":[{"key":"/\xff"}]}',
            b'{"ops":[{"key":"/a}]}', b'{"ops":[{"key":"\x01"}]}', b'{"ops":[{"ttl":-}]}',
            b'{"ops":[{"ttl":' + b"1" * 5000 + b"}]}", b"[" * 100_000,
        )),
        ({"then": []}, 209, "then: there is no such field"),
        ({"ops": {}}, 209, "ops: a list is wanted"),
        ({"when": None}, 209, "when: a list is wanted"),
        (b'{"ops":[],"ops":[]}', 209, "ops: it is there twice"),
        ({"ops": [_SET, 1]}, 209, "ops[1]: an object is wanted"),
        ({"ops": [_SET] * 129}, 209, "ops: 128 are allowed"),
        ({"when": [{"key": "/a"}] * 129}, 209, "when: 128 are allowed"),
        ({"ops": [{"key": "/a"}]}, 209, "ops[0].action: one of set, create, createInOrder, update, "
         "compareAndSwap, delete, compareAndDelete is wanted"),
        ({"ops": [op("get", "/a")]}, 209, "ops[0].action: one of set, create, createInOrder, "
         "update, compareAndSwap, delete, compareAndDelete is wanted"),
        ({"ops": [op("set", "a")]}, 209, "ops[0].key: a key begins with a slash"),
        ({"ops": [{"action": "set"}]}, 209, "ops[0].key: a key is wanted"),
        (b'{"ops":[{"action":"set","key":"/\\ud800"}]}', 209, "ops[0].key: text is wanted"),
        ({"ops": [op("set", "/a", ttl=1.5)]}, 209, "ops[0].ttl: a whole number is wanted"),
        ({"ops": [op("set", "/a", ttl=True)]}, 209, "ops[0].ttl: a whole number is wanted"),
        ({"ops": [op("set", "/a", ttl="1")]}, 209, "ops[0].ttl: a whole number is wanted"),
        ({"ops": [op("set", "/a", ttl=-1)]}, 209,
         "ops[0].ttl: a whole number of 64 bits from 0 on is wanted"),
        ({"ops": [op("set", "/a", ttl=1 << 64)]}, 209,
         "ops[0].ttl: a whole number of 64 bits from 0 on is wanted"),
        ({"ops": [op("set", "/a", dir=1)]}, 209, "ops[0].dir: true or false is wanted"),
        ({"ops": [op("set", "/a", value=None)]}, 209, "ops[0].value: a string is wanted"),
        ({"ops": [op("set", "/a", value=["x"])]}, 209, "ops[0].value: a string is wanted"),
        ({"ops": [op("set", "/a", prevValue="x")]}, 209, "ops[0].prevValue: set takes none"),
        ({"ops": [op("delete", "/a", value="x")]}, 209, "ops[0].value: delete takes none"),
        ({"ops": [op("set", "/a", recursive=True)]}, 209, "ops[0].recursive: set takes none"),
        ({"ops": [op("set", "/a", dir=True, value="x")]}, 209,
         "ops[0].value: a directory has none"),
        ({"ops": [op("set", "/a", value="", valueBase64="")]}, 209,
         "ops[0].valueBase64: there is a value already"),
        ({"ops": [op("set", "/a", valueBase64="?")]}, 209, "ops[0].valueBase64: base64 is wanted"),
        ({"ops": [op("compareAndSwap", "/a", value="x")]}, 209,
         "ops[0]: compareAndSwap needs prevValue or prevIndex"),
        ({"ops": [op("compareAndDelete", "/a", prevIndex=0)]}, 209,
         "ops[0].prevIndex: a whole number of 64 bits from 1 on is wanted"),
        ({"when": [{"exists": True}]}, 209, "when[0].key: a key is wanted"),
        ({"when": [{"key": "/a", "exists": False, "value": "x"}]}, 209,
         "when[0].value: what is not there has none"),
        ({"when": [{"key": "/a", "ttl": 1}]}, 209, "when[0].ttl: there is no such field"),
        ({"ops": [op("set", "/a", ttl=1, refresh=True, value="x")]}, 211, None),
        ({"ops": [op("set", "/a", refresh=True)]}, 212, None),
        ({"ops": [op("set", "/" + "a/" * 5000)]}, 209, None),
        ({"ops": [op("set", f"/{n}/" + "a" * 60_000) for n in range(2)]}, 209,
         "the keys have 120006 bytes, 65536 are allowed"),
        ({"ops": [op("set", f"/{n}" + "/a" * 2100) for n in range(4)]}, 209,
         "the keys have 8404 components, 8192 are allowed"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_what_is_wrong_is_named(client, body, code, cause):
    answer = txn(client, body)
    error = answer.json
    assert (answer.status, error["errorCode"]) == (400, code)
    assert cause is None or error["cause"] == cause
    assert (error["index"], answer.index) == (0, 0)


def test_it_has_to_be_json(client, key):
    body = json.dumps({"ops": [op("set", key)]}).encode()
    for content_type in ("", "text/plain", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": content_type} if content_type else {}
        answer = client.request("POST", "/v2/txn", body, headers)
        assert (answer.status, answer.json["errorCode"]) == (400, 210)
    assert client.get(key).status == 404
    assert txn(client, body, **{"Content-Type": "Application/JSON; charset=utf-8"}).status == 200


def test_other_methods_are_none(client):
    for method in ("GET", "PUT", "DELETE"):
        answer = client.request(method, "/v2/txn", b"")
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_without_extras_there_is_no_such_path(make_server):
    client = make_server("--extras=false").start().client()
    assert txn(client, {}).status == 404


def test_what_is_too_large_is_refused_and_counted(make_server):
    client = make_server().start().client()
    half = "v" * (2 * MIB + 1000)
    answer = txn(client, {"ops": [op("set", f"/{n}", value=half) for n in range(2)]})
    assert (answer.status, answer.json["errorCode"]) == (413, 210)
    assert "are allowed" in answer.json["cause"]
    assert txn(client, b" " * (6 * MIB + 1)).json["cause"] == "http: POST too large"
    for n in range(3):
        client.request("PUT", f"/v2/raw/{n}?noValueOnSuccess=true", b"v" * (6 * MIB))
    answer = txn(client, {"ops": [op("delete", f"/{n}") for n in range(3)]})
    assert (answer.status, client.get("/0").status) == (413, 200)
    assert rejected(client, "transaction_too_large") == 2
    txn(client, {"ops": [_SET] * 129})
    assert rejected(client, "too_many_operations") == 1
    answer = txn(client, {"ops": [op("delete", f"/{n}") for n in range(2)]})
    assert len(answer.json["events"][1]["prevNode"]["value"]) == 6 * MIB


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for started in running(Server(tmp_path_factory.mktemp("guarded"))):
        client = started.client()
        ask_for_users(client)
        for name, read, write in (
            ("both", ["/al/*"], ["/al/*"]),
            ("reads", ["/al/*"], []),
            ("writes", [], ["/al/*"]),
            ("exact", ["/al/d"], ["/al/d"]),
        ):
            role = {"role": name, "permissions": {"kv": {"read": read, "write": write}}}
            user = {"user": name, "password": "password", "roles": [name]}
            for path, document in (("roles", role), ("users", user)):
                made = client.request("PUT", f"/v2/auth/{path}/{name}", json.dumps(document), ROOT)
                assert made.status in (200, 201)
        yield started


def test_each_key_is_judged(guarded):
    client = guarded.client()
    mine, others = op("set", "/al/a", value="secret"), op("set", "/other")
    read = {"key": "/al/a"}
    assert txn(client, {"ops": [mine]}, **ROOT).status == 200
    for user, body, allowed in (
        ("both", {"ops": [mine]}, True),
        ("both", {"when": [read], "ops": [mine]}, True),
        ("both", {"ops": [mine, others]}, False),
        ("both", {"when": [{"key": "/other", "exists": False}], "ops": [mine]}, False),
        ("reads", {"when": [read]}, True),
        ("reads", {"ops": [mine]}, False),
        ("writes", {"ops": [mine]}, True),
        ("writes", {"when": [read], "ops": [mine]}, False),
        ("exact", {"ops": [op("set", "/al/d/x")]}, False),
        ("exact", {"ops": [op("delete", "/al/d", recursive=True)]}, False),
        ("exact", {"ops": [op("set", "/al/d")]}, True),
    ):
        answer = txn(client, body, **basic(user, "password"))
        assert answer.status == (200 if allowed else 401), (user, body, answer.body)
        assert allowed or answer.json == DENIED
    assert client.request("GET", "/v2/keys/other", headers=ROOT).status == 404
    for headers in ({}, basic("both", "wrong")):
        assert txn(client, {"ops": [mine]}, **headers).json == DENIED


def test_users_that_may_not_read_are_shown_no_value(guarded):
    client = guarded.client()
    writes = basic("writes", "password")
    txn(client, {"ops": [op("set", "/al/b", value="secret"), op("set", "/al/c")]}, **ROOT)
    answer = txn(client, {"ops": [
        op("compareAndSwap", "/al/b", value="mine", prevValue="guess"), op("set", "/al/c"),
    ]}, **writes)  # fmt: skip
    assert (answer.status, answer.json["op"]) == (412, 0)
    assert b"secret" not in answer.body
    answer = txn(client, {"ops": [
        op("set", "/al/b", ttl=100, refresh=True), op("delete", "/al/c"),
    ]}, **writes)  # fmt: skip
    assert answer.status == 200
    assert b"secret" not in answer.body
    assert answer.json["events"][1]["node"]["key"] == "/al/c"


def test_bodies_of_all_kinds_are_read_or_refused():
    dice = Random(7)
    good = json.dumps({
        "when": [{"key": "/a", "value": "1", "exists": True}],
        "ops": [op("set", "/a", value="\u2028", ttl=5), op("createInOrder", "/q", dir=True)],
    })  # fmt: skip
    assert isinstance(read_body(good.encode()).ops[1], CreateInOrder)
    read = 0
    for _ in range(20_000):
        text = bytearray(good.encode())
        for _ in range(dice.randint(1, 3)):
            place = dice.randrange(len(text))
            if dice.random() < 0.5:
                text[place] = dice.choice(b'{}[]",:0tfn \\\x00\xff')
            else:
                del text[place : place + dice.randint(1, 9)]
        code = code_of(bytes(text))
        assert code in (0, 209, 210, 211, 212)
        read += not code
    assert read


def code_of(body: bytes) -> int:
    """Return the code of the error that a body is refused with, or 0."""
    try:
        read_body(body)
    except ApiError as refusal:
        return refusal.code
    return 0
