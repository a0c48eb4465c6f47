"""The short way of requests: nobody can tell it from the long way, but by its price.

With an access log all requests go the long way. So two servers that are asked the same, one of them
with such a log, have to say the same.
"""

import asyncio
import random
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlencode

import pytest
from tornado import httputil

from kvd.http.connection import ANSWERING, Connection
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.limits.memory import Memory
from tests.support.raw import Raw, request
from tests.support.server import FORM, PATIENCE_S, Answer, Server, running

WITHOUT_UVLOOP = (
    "import sys; sys.modules['uvloop'] = None; from kvd.__main__ import main; sys.exit(main())"
)
TOKEN = ("--initial-cluster-token", "same")
# What the time decides, and what says who has asked.
VARYING = re.compile(rb'"expiration":"[^"]*"|"ttl":\d+')

NAMES = [
    "a",
    "b",
    "c",
    "_h",
    "x&y",
    "it's",
    "~(*)",
    ".dot",
    "e%41",
    "%2e",
    "%zz",
    "<",
    "é",
    "n" * 200,
]
PATHS = ["/a", "/b", "/d/a", "/d/b", "/d/e/a", "/d", "/a/b", "", "/", "/d/", "//a", "/d/../a"]
QUERIES = [
    *("recursive=true", "sorted=true", "quorum=true", "dir=true", "noValueOnSuccess=true"),
    *("prevExist=true", "prevExist=false", "prevValue=1", "prevValue=", "prevIndex=0"),
    *(
        "ttl=",
        "ttl=-1",
        "recursive=maybe",
        "bogus",
        "a;b",
        "%zz",
        "=",
        "&&",
        "value=q",
        "wait=maybe",
    ),
]
VALUES = [
    *(
        b"1",
        b"2",
        b"",
        b"a b",
        b'{"json": [1, 2]}',
        b"a=b==",
        b"<>",
        b"a;b",
        b"a&b",
        b"a+b",
        b"\xff\xfe",
    ),
    *("é\u2028".encode(), b"\x01\n\t", b"%3C%26%3E", b"+", b"%zz", b"x" * 1000, b"y" * 20_000),
    *(b'"' * 16_000, b"\x01" * 15_000),
]
FORMS = [
    *(b"value=%b",) * 8,
    *(
        b"value=%b&ttl=90000",
        b"ttl=90000&value=%b",
        b"prevValue=1&value=%b",
        b"value=%b&prevValue=1",
    ),
    *(b"prevExist=true&value=%b", b"prevExist=false&value=%b", b"value=%b&noValueOnSuccess=true"),
    *(b"ttl=90000&value=%b&prevExist=true", b"value=%b&ttl=99999999999", b"prevValue=%b&ttl=9"),
    *(
        b"prevValue=%b&value=1",
        b"value=%b&value=2",
        b"&value=%b&",
        b"VALUE=%b",
        b"value=%b&dir=true",
    ),
]
FIXED_FORMS = [
    *(b"ttl=90000&refresh=true&prevExist=true", b"refresh=true&ttl=90000", b"refresh=true"),
    *(b"refresh=true&ttl=99999999999", b"ttl=99999999999", b"ttl=x", b"prevValue=", b"value"),
    *(b"dir=true", b"dir=true&prevExist=true&ttl=90000", b"", b";", b"=v", b"wait=true"),
]
TYPES = [
    *(FORM,) * 8,
    FORM + "; charset=utf-8",
    FORM.upper(),
    "text/plain",
    "",
    "a/b/c",
    ";;",
    "a; b=1; b=2",
]
HEADERS = [
    *(
        "X: y",
        "Accept: */*",
        "Connection: keep-alive",
        "Authorization: Basic YTpi",
        "Expect: nothing",
    ),
    *("Origin: http://other", "Connection: close", "Expect: 100-continue", "Upgrade: h2c"),
]


@pytest.fixture
def servers(tmp_path) -> Iterator[tuple[Server, Server]]:
    short = Server(tmp_path / "short", *TOKEN)
    long = Server(tmp_path / "long", *TOKEN, "--access-log")
    for _ in running(short):
        for _ in running(long):
            yield short, long


class Asking:
    """A client of both servers, who compares what they say."""

    def __init__(self, servers: tuple[Server, Server]) -> None:
        self.servers = servers
        self.connections = [Raw(server.port) for server in servers]

    def ask(self, *requests: tuple[str, bytes], cut: int = 0) -> list[Answer]:
        """Send requests, in two pieces if they are cut, and compare the answers."""
        sent = b"".join(data for _, data in requests)
        for connection in self.connections:
            connection.send(*(piece for piece in (sent[:cut], sent[cut:]) if piece))
        answers = []
        for method, _ in requests:
            pair = [comparable(connection.answer(method)) for connection in self.connections]
            assert pair[0] == pair[1], sent[:2000]
            answers.append(pair[0])
            if pair[0].headers.get("connection") == "close":
                self.close()
                self.connections = [Raw(server.port) for server in self.servers]
                break
        return answers

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


def comparable(answer: Answer) -> Answer:
    """An answer without what differs by when it was given."""
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    body, varying = VARYING.subn(b'"varying":0', answer.body)
    if varying or not body:
        headers.pop("content-length", None)
    return Answer(answer.status, headers, body)


class Chance:
    """Requests as they may come, most of them to few keys."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.index = 1

    def request(self) -> tuple[str, bytes]:
        chance = self.random
        method = chance.choice(
            ["GET", "GET", "GET", "PUT", "PUT", "PUT", "PUT", "POST", "DELETE", "HEAD"]
        )
        path = chance.choice(PATHS)
        if chance.random() < 0.2:
            path += "/" + chance.choice(NAMES) * chance.choice([1, 1, 1, 2])
        query = self.query() if chance.random() < 0.25 else None
        target = "/v2/keys" + path + ("" if query is None else "?" + query)
        lines = [f"{method} {target} HTTP/1.1", "Host: h"]
        body = b""
        if method in ("PUT", "POST") or chance.random() < 0.05:
            body = self.form()
            if content_type := chance.choice(TYPES):
                lines.append(f"Content-Type: {content_type}")
            lines.append(f"Content-Length: {len(body)}")
        if chance.random() < 0.1:
            lines.append(chance.choice(HEADERS))
        return method, "\r\n".join([*lines, "", ""]).encode() + body

    def query(self) -> str:
        chance = self.random
        index = max(1, self.index - chance.randrange(20))
        varied = [f"prevIndex={index}", "wait=true&quorum=true", "?", ""]
        return "&".join(chance.choice([*QUERIES, *varied]) for _ in range(chance.choice([1, 1, 2])))

    def form(self) -> bytes:
        chance = self.random
        kind = chance.random()
        if kind < 0.2:
            return chance.choice(FIXED_FORMS)
        if kind < 0.3:
            index = max(1, self.index - chance.randrange(4))
            return b"value=%d&prevIndex=%d" % (index, index)
        return chance.choice(FORMS) % chance.choice(VALUES)


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


# Batches of many.


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
def test_the_answers_to_many_writers_tell_one_history(fresh_server, seed):
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
            told = {
                answer.index: (key, answer.json)
                for (key, _), answer in zip(asked, answers, strict=True)
                if answer.status < 300
            }
            for index in sorted(told):
                replayed.take(*told[index])
            # The short way, and the long way before and behind it.
            reads = [
                f"{key}{query}" for key in keys for query in ("?quorum=true", "", "?quorum=true")
            ]
            data = b"".join(request("GET", "/v2/keys" + read) for read in reads)
            ((*shown,),) = ask_all(clients[:1], [data], answers=len(reads))
            for place in range(0, len(reads), 3):
                before, short, behind = map(comparable, shown[place : place + 3])
                assert before != behind or short == before


# What ends the short way of an open connection.


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


class Pending(Delegate):
    """Takes all requests, to be answered later; but those first that no block is known of."""

    def __init__(self):
        self.pending = []

    def serve_whole(self, connection, request):
        if request != READ:
            return None
        connection.stage = ANSWERING
        self.pending.append(connection)
        return b""

    def start_request(self, connection):
        return First(connection)


class First(httputil.HTTPMessageDelegate):
    """A request that is answered at once."""

    def __init__(self, connection):
        self.connection = connection

    def finish(self):
        self.connection.respond(200, b"", b"")


class Waiting:
    """A server of such a delegate, and a client of it."""

    def __init__(self, loop):
        self.delegate = Pending()
        self.server = HttpServer(self.delegate, Limits(), loop, Memory(1 << 28))
        self.client = socket.socket()
        self.client.setblocking(False)

    async def ask(self, *requests):
        """Send requests; return the connection once the first is pending."""
        self.client.send(b"".join(requests))
        await until(lambda: self.delegate.pending)
        return self.delegate.pending.pop()

    async def another(self):
        """Return the connection once another request is pending."""
        return await self.ask()

    async def read(self):
        """What the server says next."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.client, 65536), 30)


async def until(holds):
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0)


READ = request("GET", "/v2/keys/a")
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1"


def with_a_client(test):
    """Run a test with a client that has been answered once, on each event loop."""

    @pytest.mark.parametrize("module", ["uvloop", "asyncio"])
    def run(module):
        async def body():
            loop = asyncio.get_running_loop()
            waiting = Waiting(loop)
            listener = await loop.create_server(
                lambda: Connection(waiting.server), "127.0.0.1", 0, family=socket.AF_INET
            )
            try:
                with waiting.client as client:
                    await loop.sock_connect(client, listener.sockets[0].getsockname())
                    client.send(READ)
                    assert b"200 OK" in await waiting.read()
                    await test(waiting)
            finally:
                listener.close()
                await until(lambda: not waiting.server.connections)

        with asyncio.Runner(loop_factory=pytest.importorskip(module).new_event_loop) as runner:
            runner.run(body())

    run.__name__ = test.__name__
    return run


@with_a_client
async def test_one_request_after_another_is_replied_to_at_once(waiting):
    for _ in range(3):
        assert (await waiting.ask(READ)).reply(ANSWER)
        assert await waiting.read() == ANSWER


@with_a_client
async def test_a_pending_answer_is_the_last_after_a_stop(waiting):
    connection = await waiting.ask(READ)
    waiting.server.stop()
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")
    assert b"Connection: close\r\n" in await waiting.read()
    assert await waiting.read() == b""


@with_a_client
async def test_what_came_behind_a_pending_request_is_served_after_it(waiting):
    connection = await waiting.ask(READ, READ)
    waiting.client.send(READ)
    assert not connection.reply(ANSWER)
    assert not waiting.delegate.pending
    connection.respond(200, b"", b"1")
    for _ in range(2):
        await until(lambda: waiting.delegate.pending)
        waiting.delegate.pending.pop().respond(200, b"", b"2")
    assert (await waiting.ask(READ)).reply(ANSWER)


@with_a_client
async def test_what_comes_while_a_request_is_pending_is_served_after_it(waiting):
    connection = await waiting.ask(READ)
    waiting.client.send(READ)
    await until(lambda: connection.stage != ANSWERING)
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")
    assert (await waiting.another()).reply(ANSWER)


@with_a_client
async def test_a_client_that_has_said_its_last_word_is_answered_and_left(waiting):
    connection = await waiting.ask(READ)
    waiting.client.shutdown(socket.SHUT_WR)
    await until(lambda: connection.stage != ANSWERING)
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")
    assert (await waiting.read()).endswith(b"\r\n\r\n1")
    assert await waiting.read() == b""


@with_a_client
async def test_a_client_that_is_gone_is_sent_nothing(waiting):
    connection = await waiting.ask(READ)
    waiting.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    waiting.client.close()
    await until(lambda: connection.gone)
    assert not connection.reply(ANSWER)
    connection.respond(200, b"", b"1")


@with_a_client
async def test_a_client_that_does_not_read_is_not_served(waiting):
    connection = await waiting.ask(READ)
    large = b"x" * (16 << 20)
    assert connection.reply(large)
    waiting.client.send(READ)
    await until(lambda: connection.is_asked or connection._parser.buffer)
    assert not waiting.delegate.pending
    read = 0
    while read < len(large):
        read += len(await waiting.read())
    assert (await waiting.another()).reply(ANSWER)


@with_a_client
async def test_a_pending_request_is_not_ended_for_the_time_it_takes(waiting):
    connection = await waiting.ask(READ)
    waiting.server.tick()
    connection.deadline = waiting.server.now - 1000
    waiting.server.tick()
    assert connection.reply(ANSWER)
    assert await waiting.read() == ANSWER
    assert connection.deadline > waiting.server.now
