"""The short way of requests: its answers are those of the long way.

With an access log all requests go the long way. So two servers that are asked the same, one of them
with such a log, have to say the same.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.chance import Asking, Chance, comparable
from tests.support.raw import Raw, request
from tests.support.server import FORM, Answer, Server, running

WITHOUT_UVLOOP = (
    "import sys; sys.modules['uvloop'] = None; from kvd.__main__ import main; sys.exit(main())"
)
TOKEN = ("--initial-cluster-token", "same")


@pytest.fixture
def servers(tmp_path) -> Iterator[tuple[Server, Server]]:
    short = Server(tmp_path / "short", *TOKEN)
    long = Server(tmp_path / "long", *TOKEN, "--access-log")
    for _ in running(short):
        for _ in running(long):
            yield short, long


@pytest.mark.parametrize("seed", range(4))
def test_any_request_is_answered_as_on_the_long_way(servers, seed):
    chance = Chance(seed)
    asking = Asking(servers)
    for _ in range(250):
        together = [chance.request() for _ in range(chance.random.choice([1, 1, 1, 1, 2, 5]))]
        cut = chance.random.randrange(1, len(together[0][1])) if chance.random.random() < 0.1 else 0
        for answer in asking.ask(*together, cut=cut):
            chance.index = int(answer.headers.get("x-etcd-index", 0)) or chance.index
    asking.close()


WRITTEN = [b"1", b"2", b"a b", b"<>", b'"', "\u00fc".encode(), b"x" * 300, b"", b'"' * 14_000]


class Writes:
    """Writes as etcd's clients send them, to few keys, whose conditions often hold."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.known: dict[str, tuple[bytes, int]] = {}
        """Values and indexes, as answers have told of them."""

    def request(self) -> tuple[str, str, bytes]:
        """Method, key and request."""
        chance = self.random
        key = chance.choice(["/a", "/b", "/d/a", "/d/b", "/d"])
        method = chance.choice(["PUT"] * 6 + ["DELETE"] * 2 + ["POST"])
        value, index = self.known.get(key, (b"1", 1))
        query = self.condition(value, index)
        form: dict[str, str | bytes] = {}
        if method != "DELETE":
            form = self.form()
        elif chance.random() < 0.2:
            query[chance.choice(["dir", "recursive"])] = "true"
        # Some send all by the one way, some by the other.
        if method != "DELETE" and chance.random() < 0.3:
            query, form = ({}, query | form) if chance.random() < 0.5 else (query | form, {})
        said = urlencode(query)
        target = f"/v2/keys{key}" + (f"?{said}" if said else "")
        body = urlencode(form).encode() if form or method != "DELETE" else None
        return method, key, request(method, target, body=body)

    def condition(self, value: bytes, index: int) -> dict[str, str | bytes]:
        chance = self.random
        kind = chance.random()
        if kind < 0.2:
            return {"prevValue": value if chance.random() < 0.8 else b"other"}
        if kind < 0.4:
            return {"prevIndex": str(index if chance.random() < 0.8 else index + 1)}
        if kind < 0.5:
            return {"prevExist": chance.choice(["true", "true", "false"])}
        return {}

    def form(self) -> dict[str, str | bytes]:
        chance = self.random
        if chance.random() < 0.2:
            return {"refresh": "true", "ttl": chance.choice(["9000", "99999999999"])}
        form: dict[str, str | bytes] = {"value": chance.choice(WRITTEN)}
        if chance.random() < 0.3:
            form["ttl"] = chance.choice(["9000", "9000", "", "99999999999"])
        if chance.random() < 0.1:
            form["noValueOnSuccess"] = "true"
        if chance.random() < 0.05:
            return {"dir": "true"}
        return form

    def take(self, key: str, answer: Answer) -> None:
        node = answer.json.get("node") or {}
        if "value" in node:
            self.known[key] = node["value"].encode(), node["modifiedIndex"]


@pytest.mark.parametrize("seed", range(4))
def test_any_write_is_answered_as_on_the_long_way(servers, seed):
    writes = Writes(seed)
    asking = Asking(servers)
    for _ in range(500):
        method, key, sent = writes.request()
        (answer,) = asking.ask((method, sent))
        writes.take(key, answer)
    asking.close()


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_request_may_come_in_two_pieces_cut_anywhere(fresh_server, method):
    sent = request(method, "/v2/keys/k", body=b"value=1" if method == "PUT" else None)
    with Raw(fresh_server.port) as raw, Raw(fresh_server.port) as other:
        # What a cut leaves of the headers is known, where it is whole lines.
        for headers in ((), (f"Content-Type: {FORM}",)):
            other.ask("GET", "/v2/keys/k", *headers)
        other.ask("PUT", "/v2/keys/k", body=b"value=1")
        for cut in range(1, len(sent)):
            raw.send(sent[:cut])
            other.ask("GET", "/v2/keys/other")  # so the first piece has been read by now
            answer = raw.send(sent[cut:]).answer()
            assert (answer.status, answer.json["node"]["value"]) == (200, "1"), cut


def ask_all(connections: list[Raw], requests: list[bytes], answers: int = 1) -> list[list[Answer]]:
    """Send to all connections before any answer is read; so many answers come from each."""
    for connection, data in zip(connections, requests, strict=True):
        connection.send(data)
    return [[connection.answer() for _ in range(answers)] for connection in connections]


def test_a_read_behind_a_write_shows_the_last_of_its_batch(fresh_server):
    with ExitStack() as stack:
        writers = [stack.enter_context(Raw(fresh_server.port)) for _ in range(16)]
        for turn in range(30):
            asked = [
                request("PUT", "/v2/keys/k", body=b"value=%d" % (100 * turn + n))
                + request("GET", "/v2/keys/k")
                for n in range(16)
            ]
            for put, read in ask_all(writers, asked, answers=2):
                assert put.json["node"]["modifiedIndex"] == put.index <= read.index
                # Nothing else is written: whatever is committed is of this key.
                assert read.json["node"]["modifiedIndex"] == read.index


class Replayed:
    """The keys as the answers to all writes tell of them, in the order of their indexes."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any] | None] = {}
        """What a key holds; None where an answer did not say."""

    def take(self, key: str, event: dict[str, Any]) -> None:
        """Compare what an answer says of the time before it, and do what it says."""
        node, before = event.get("node"), event.get("prevNode")
        if node is None:
            self.nodes[key] = None
            return
        known = self.nodes.get(key, {})
        if before is None:
            # It may have ended, or its directory.
            assert not known or "ttl" in known or key.startswith("/ends/"), event
        elif known is not None and not before.get("dir"):
            shown = [{**each, "ttl": 0, "expiration": 0} for each in (known, before)]
            assert shown[0] == shown[1], event
        if event["action"] == "delete":
            for path in [path for path in self.nodes if path == key or path.startswith(key + "/")]:
                del self.nodes[path]
        elif not node.get("dir"):
            self.nodes[key] = node


@pytest.mark.parametrize("seed", range(2))
def test_the_answers_to_many_writers_agree_on_one_history(fresh_server, seed):
    chance = random.Random(seed)
    keys = ["/a", "/b", "/d/a", "/d/b", "/d/e/a", "/ends/a", "/ends/b"]
    forms = [
        *(b"value=%b",) * 6, b"value=%b&ttl=1", b"value=%b&ttl=9999", b"prevValue=1&value=%b",
        b"value=%b&prevExist=true", b"ttl=60&refresh=true&prevExist=true",
        b"value=%b&noValueOnSuccess=true",
    ]  # fmt: skip

    def write() -> tuple[str, bytes]:
        kind = chance.random()
        if kind < 0.05:
            key = chance.choice(["/d", "/d/e"])
            return key, request("DELETE", f"/v2/keys{key}?recursive=true")
        if kind < 0.08:
            # What is below it ends with it.
            return "/ends", request("PUT", "/v2/keys/ends", body=b"dir=true&prevExist=true&ttl=1")
        key = chance.choice(keys)
        if kind < 0.2:
            return key, request("DELETE", "/v2/keys" + key)
        form = chance.choice(forms)
        value = chance.choice([b"1", b"2", b'"<', b"x" * 300])
        return key, request("PUT", "/v2/keys" + key, body=form % value if b"%b" in form else form)

    replayed = Replayed()
    with ExitStack() as stack:
        clients = [stack.enter_context(Raw(fresh_server.port)) for _ in range(24)]
        for _ in range(60):
            asked = [write() for _ in clients]
            answers = [answer for (answer,) in ask_all(clients, [data for _, data in asked])]
            received = {
                answer.index: (key, answer.json)
                for (key, _), answer in zip(asked, answers, strict=True)
                if answer.status < 300
            }
            for index in sorted(received):
                replayed.take(*received[index])
            # The short way, and the long way before and behind it.
            reads = [
                f"{key}{query}" for key in keys for query in ("?quorum=true", "", "?quorum=true")
            ]
            data = b"".join(request("GET", "/v2/keys" + read) for read in reads)
            ((*shown,),) = ask_all(clients[:1], [data], answers=len(reads))
            for place in range(0, len(reads), 3):
                before, short, behind = map(comparable, shown[place : place + 3])
                assert before != behind or short == before


def test_users_are_asked_for_on_open_connections_at_once(fresh_server):
    with Raw(fresh_server.port) as open_one, Raw(fresh_server.port) as administrator:
        root = ("Authorization: Basic cm9vdDpwdw==",)
        value = b"value=1"
        assert open_one.ask("PUT", "/v2/keys/k", body=value).status == 201
        user = b'{"user":"root","password":"pw"}'
        assert administrator.ask("PUT", "/v2/auth/users/root", body=user).status == 201
        assert administrator.ask("PUT", "/v2/auth/enable").status == 200
        role = b'{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}'
        assert administrator.ask("PUT", "/v2/auth/roles/guest", *root, body=role).status == 200
        for method, body in (("GET", None), ("PUT", value), ("POST", value), ("DELETE", None)):
            assert open_one.ask(method, "/v2/keys/k", body=body).status == 401
        assert administrator.ask("DELETE", "/v2/auth/enable", *root).status == 200
        assert open_one.ask("PUT", "/v2/keys/k", body=value).status == 200


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_clients_that_go_before_the_answer_leave_nothing_behind(make_server, loop):
    server = make_server()
    if loop == "asyncio":
        server.launch = ("-c", WITHOUT_UVLOOP)
    else:
        pytest.importorskip("uvloop")
    server.start()
    client = server.client()
    for turn in range(20):
        gone = [Raw(server.port) for _ in range(16)]
        for raw in gone:
            raw.ask("GET", "/v2/keys/none")
        for n, raw in enumerate(gone):
            raw.send(request("PUT", f"/v2/keys/k{n}", body=b"value=%d" % turn) * (1 + n % 2))
            raw.reset() if n % 3 else raw.half_close().close()
        assert client.put("/other", turn).json["node"]["value"] == str(turn)
    for n in range(16):
        assert client.get(f"/k{n}").json == client.get(f"/k{n}", quorum="true").json
