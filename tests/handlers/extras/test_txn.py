"""`POST /v2/txn`: conditions and operations over HTTP, and their rules against a model."""

import json
import signal
import time
from base64 import b64encode
from random import Random

import pytest

from kvd.v2.commands import Transaction
from kvd.v2.errors import ApiError
from kvd.v2.rules import decide, decide_all
from tests.support.memory import MIB
from tests.support.model import Model
from tests.support.raw import Raw
from tests.support.stores import NOW_NS, random_command
from tests.support.txn import op, txn


def test_all_operations_at_once(client, key):
    client.put(f"{key}/swapped", "1")
    client.put(f"{key}/updated", "1")
    client.put(f"{key}/old/below", "1")
    doomed = client.put(f"{key}/doomed", "1").json["node"]
    answer = txn(client, {"ops": [
        op("set", f"{key}/set", value="<v>"),
        op("create", f"{key}/made", dir=True, ttl=100),
        op("createInOrder", f"{key}/queue", value="first"),
        op("update", f"{key}/updated", value="2"),
        op("compareAndSwap", f"{key}/swapped", value="2", prevValue="1"),
        op("delete", f"{key}/old", recursive=True),
        op("compareAndDelete", f"{key}/doomed", prevIndex=doomed["modifiedIndex"]),
    ]})  # fmt: skip
    assert answer.status == 200
    body = answer.json
    first = doomed["modifiedIndex"] + 1
    assert (body["action"], body["index"], answer.index) == ("txn", first + 6, first + 6)
    events = body["events"]
    assert [event["node"]["modifiedIndex"] for event in events] == list(range(first, first + 7))
    assert [event["action"] for event in events] == [
        *("set", "create", "create", "update", "compareAndSwap", "delete", "compareAndDelete"),
    ]
    assert events[0]["node"]["value"] == "<v>"
    assert events[1]["node"]["ttl"] == 100
    assert events[2]["node"]["key"] == f"{key}/queue/{first + 2:020}"
    assert events[4]["prevNode"]["value"] == "1"
    assert events[6]["prevNode"] == doomed
    # What is there now, and what the history says, is the same.
    names = {node["key"].rpartition("/")[2] for node in client.get(key).json["node"]["nodes"]}
    assert names == {"set", "made", "queue", "updated", "swapped"}
    for event in events:
        index = event["node"]["modifiedIndex"]
        watched = client.get(key, wait="true", recursive="true", waitIndex=str(index)).json
        assert watched["action"] == event["action"]
        assert watched["node"] == event["node"]


def test_conditions_that_hold(client, key):
    node = client.put(f"{key}/a", "1").json["node"]
    when = [
        {"key": f"{key}/a", "value": "1", "dir": False, "exists": True,
         "modifiedIndex": node["modifiedIndex"], "createdIndex": node["createdIndex"]},
        {"key": f"{key}/a", "valueBase64": b64encode(b"1").decode()},
        {"key": f"{key}/none", "exists": False},
        {"key": key, "dir": True},
        {"key": "/"},
    ]  # fmt: skip
    answer = txn(client, {"when": when, "ops": [op("set", f"{key}/b")]})
    assert (answer.status, len(answer.json["events"])) == (200, 1)
    # Without operations: only whether they hold, at the index of now.
    answer = txn(client, {"when": when})
    index = client.get(key).index
    assert answer.json == {"action": "txn", "index": index, "events": []}
    assert txn(client, {}).json["events"] == []


@pytest.mark.parametrize(
    ("condition", "status", "code", "cause"),
    [
        ({"key": "/none"}, 404, 100, "/none"),
        ({"key": "/file/x"}, 400, 104, "/file"),
        ({"key": "/file", "exists": False}, 412, 105, "/file"),
        ({"key": "/dir", "exists": False}, 412, 105, "/dir"),
        ({"key": "/file", "dir": True}, 400, 104, "/file"),
        ({"key": "/dir", "dir": False}, 403, 102, "/dir"),
        ({"key": "/dir", "value": ""}, 403, 102, "/dir"),
        ({"key": "/file", "value": "2"}, 412, 101, "[2 != 1]"),
        ({"key": "/file", "value": ""}, 412, 101, "[ != 1]"),
        ({"key": "/file", "value": "2", "modifiedIndex": 9}, 412, 101, "[2 != 1] [9 != 3]"),
        ({"key": "/file", "modifiedIndex": 9}, 412, 101, "[9 != 3]"),
        ({"key": "/file", "createdIndex": 9}, 412, 101, "[9 != 2]"),
        ({"key": "/dir", "createdIndex": 9}, 412, 101, "[9 != 4]"),
    ],
)
def test_a_condition_that_does_not_hold(make_server, condition, status, code, cause):
    client = make_server().start().client()
    client.put("/file", "0")
    client.request("PUT", "/v2/keys/file?prevExist=true", {"value": "1"})
    client.put("/dir", dir="true")
    when = [{"key": "/"}, condition]
    answer = txn(client, {"when": when, "ops": [op("set", "/made", value="1")]})
    error = answer.json
    assert (answer.status, error["errorCode"], error["cause"]) == (status, code, cause)
    assert (error["when"], error["index"], answer.index) == (1, 4, 4)
    assert "op" not in error
    assert client.get("/made").status == 404


def test_values_of_any_size_and_bytes(client, key):
    values = {f"{key}/{n}": bytes(range(256)) * (n * n * 100) for n in range(6)}
    ops = [op("set", k, valueBase64=b64encode(v).decode()) for k, v in values.items()]
    assert sum(map(len, values.values())) > MIB
    for _ in range(2):  # the second one is answered with the values that were there, too
        answer = txn(client, {"ops": ops})
        assert answer.status == 200
        shown = [event["node"]["value"] for event in answer.json["events"]]
        assert shown == [value.decode("utf-8", "replace") for value in values.values()]
    for k, value in values.items():
        assert client.request("GET", f"/v2/raw{k}").body == value


def test_each_operation_is_counted_by_its_action(make_server):
    client = make_server().start().client()
    txn(client, {"ops": [op("set", "/a"), op("set", "/b"), op("create", "/c")]})
    txn(client, {"ops": [op("set", "/a"), op("create", "/c")]})
    txn(client, {"when": [{"key": "/none"}], "ops": [op("set", "/a")]})
    stats = client.request("GET", "/v2/stats/store").json
    assert (stats["setsSuccess"], stats["setsFail"]) == (2, 0)
    assert (stats["createSuccess"], stats["createFail"]) == (1, 1)
    assert (stats["compareAndSwapFail"], stats["expireCount"]) == (1, 0)


def test_a_stream_receives_all_of_it_in_order(server, client, key):
    watch = server.watch(key, stream="true", recursive="true")
    answer = txn(client, {"ops": [op("set", f"{key}/{n}", value=str(n)) for n in range(20)]})
    assert [watch.event() for _ in range(20)] == answer.json["events"]
    watch.close()


def test_what_has_ended_is_not_there(make_server, key):
    server = make_server().start()
    client = server.client()
    client.put(f"{key}/ended", "1", ttl=1)
    client.put(f"{key}/dir/x", "1")
    client.request("PUT", f"/v2/keys{key}/dir?dir=true&ttl=1&prevExist=true")
    body = json.dumps({
        "when": [{"key": f"{key}/ended", "exists": False}],
        "ops": [op("create", f"{key}/ended", value="2"), op("create", f"{key}/dir", dir=True)],
    }).encode()  # fmt: skip
    head = (
        "POST /v2/txn HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with Raw(server.port) as connection:
        connection.ask("GET", "/version")  # accepted before the pause
        server.signal(signal.SIGSTOP)
        time.sleep(1.1)  # time has to pass
        connection.send(head.encode(), body)
        server.signal(signal.SIGCONT)
        assert connection.answer().status == 200
    assert client.get(f"{key}/dir", recursive="true").json["node"].get("nodes") is None


def test_it_survives_a_kill(make_server):
    server = make_server().start()
    answer = txn(server.client(), {"ops": [op("set", f"/{n}", ttl=100) for n in range(100)]})
    server.kill()
    client = server.start().client()
    nodes = {node["key"]: node for node in client.get("/").json["node"]["nodes"]}
    assert len(nodes) == 100
    for event in answer.json["events"]:
        node = nodes[event["node"]["key"]]
        assert node["expiration"] == event["node"]["expiration"]
        assert node["modifiedIndex"] == event["node"]["modifiedIndex"]


def as_read(ops: list[object]) -> Transaction | None:
    """Return what `read_body` makes of operations, None where they are on one branch."""
    keys = [command.key.rstrip(b"/") + b"/" for command in ops]
    for n, key in enumerate(keys):
        if any(other.startswith(key) for m, other in enumerate(keys) if m != n):
            return None
    return Transaction(b"", (), tuple(ops))


@pytest.mark.parametrize("seed", range(4))
def test_all_at_once_is_one_after_the_other(seed):
    """Deciding all on the state before gives the changes that deciding them in turn gives."""
    dice = Random(seed)
    done = refused = 0
    model = Model()
    for turn in range(1500):
        if turn % 50 == 0:
            model = Model()
            for _ in range(40):
                outcome = in_turn(model, (random_command(dice),))
                if isinstance(outcome, list):
                    model.apply(*outcome)
        transaction = as_read([random_command(dice) for _ in range(dice.randint(1, 4))])
        if transaction is None:
            continue
        expected = in_turn(model.copy(), transaction.ops)
        found = at_once(model, transaction)
        assert found == expected
        refused += isinstance(found, tuple)
        if isinstance(found, list):
            done += 1
            for change in found:
                model.apply(change)
    assert done > 100
    assert refused > 100


def at_once(model: Model, transaction: Transaction) -> object:
    """Return the changes of a transaction, or its refusal and its place."""
    try:
        return decide_all(model, transaction, model.index + 1, NOW_NS)
    except ApiError as refusal:
        return refusal.code, refusal.place and refusal.place[1]


def in_turn(model: Model, ops: tuple[object, ...]) -> object:
    """Return the changes of commands one after the other, or the first refusal and its place."""
    changes = []
    for number, command in enumerate(ops):
        try:
            change = decide(model, command, model.index + 1, NOW_NS)
        except ApiError as refusal:
            return refusal.code, number
        if number < len(ops) - 1:
            model.apply(change)
        changes.append(change)
    return changes
