"""Requests drawn at random, for answers that have to be the same in two ways."""

import random
import re

from tests.support.raw import Raw
from tests.support.server import FORM, Answer, Server

# The parts of an answer that depend on the time or name the client.
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


class Asking:
    """A client of both servers that compares their answers."""

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
