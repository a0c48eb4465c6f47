"""Extras are invisible to requests that do not name them, to web pages, and where they are off.

Two servers are sent the same requests, one with extras and one without, and must answer alike. A
few in the ordinary run; `pytest -m limits_full tests/handlers/extras/test_off.py` sends 100,000.
"""

import contextlib
import re
from collections.abc import Iterator
from random import Random
from urllib.parse import urlencode

import pytest

from kvd.v2.request import EXTRAS
from tests.support.guarded import ask_for_users
from tests.support.server import FORM, Answer, Client, Server, running

NAMES = ["a", "a", "b", "c", "_h", "é"]
VALUES = ["", "1", "2", "x y", "<&>"]
BOOLS = ["true", "true", "false", "1", "yes", ""]
NUMBERS = ["1", "5000", "x"]
INDEXES = ["0", "1", "3", "7", "x", "-1"]
# What clients of etcd send: etcd's own parameters, and those of node-etcd, go-etcd, etcd4j and
# lua-resty-etcd that etcd ignores.
PARAMETERS = {
    **dict.fromkeys(("recursive", "sorted", "quorum", "dir", "refresh", "prevExist"), BOOLS),
    **dict.fromkeys(("noValueOnSuccess", "consistent", "synchronous", "retry"), BOOLS),
    **dict.fromkeys(("timeout", "maxRetries", "cacheBuster"), NUMBERS),
    **dict.fromkeys(("prevIndex", "waitIndex"), INDEXES),
    "prevValue": VALUES,
    "ttl": ["", "1000", "x"],
}
HEADERS = {
    "Accept": ["*/*", "application/json", "application/json, text/plain, */*", "text/html"],
    "Accept-Encoding": ["gzip", "gzip, deflate", "identity", "br;q=1.0, gzip;q=0.8"],
    "If-None-Match": ["*", '"3"', 'W/"3"'],
    "If-Match": ["*", '"3"'],
    "If-Modified-Since": ["Sat, 29 Oct 1994 19:43:31 GMT"],
    "Range": ["bytes=0-3"],
    "User-Agent": ["Go-http-client/1.1", "Patroni/4.1.5 Python/3.11.2 Linux"],
    "Cache-Control": ["no-cache"],
    "Connection": ["keep-alive"],
}


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A connection to a server without extras, and a few keys there."""
    directory = tmp_path_factory.mktemp("off")
    for started in running(Server(directory, "--extras=false")):
        client = started.client()
        client.put("/d/x", "v")
        client.put("/d/_h", "v")
        yield client


def comparable(answer: Answer) -> tuple[object, ...]:
    """An answer without what differs between any two servers."""
    headers = {k: v for k, v in answer.headers.items() if k not in ("date", "x-etcd-cluster-id")}
    body = re.sub(rb'"(expiration":"[^"]*|ttl":\d+)', b"", answer.body)
    headers.pop("content-length", None)
    return answer.status, list(headers.items()), body


def requests(dice: Random, count: int) -> Iterator[tuple[str, str, bytes | None, dict[str, str]]]:
    for _ in range(count):
        if dice.random() < 0.05:
            # A watch that has its event, or is told that it has gone.
            given = {"wait": "true", "recursive": "true", "waitIndex": str(dice.randrange(2, 40))}
            names = dice.sample(["consistent", "sorted", "quorum", "timeout"], k=dice.randrange(3))
            given |= {name: dice.choice(["true", "false"]) for name in names}
            yield "GET", f"/v2/keys/?{urlencode(given)}", None, {}
            continue
        method = dice.choices(
            ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"), (40, 6, 35, 8, 15, 1)
        )[0]
        key = "".join(f"/{name}" for name in dice.choices(NAMES, k=dice.choice((0, 1, 1, 2, 3))))
        names = dice.sample([*PARAMETERS], k=dice.choice((0, 0, 1, 1, 2, 3)))
        if method not in ("GET", "HEAD") and dice.random() < 0.3:
            # Nor do they mean anything to other methods.
            names += dice.sample(sorted(name.decode() for name in EXTRAS), k=2)
        given = {name: dice.choice(PARAMETERS.get(name, ["true", "5", "x"])) for name in names}
        if method in ("PUT", "POST") and dice.random() < 0.8:
            given["value"] = dice.choice(VALUES)
        headers = {
            name: dice.choice(HEADERS[name])
            for name in dice.sample([*HEADERS], k=dice.choice((0, 0, 1, 2)))
        }
        body: bytes | None = None
        query = urlencode(given)
        if method in ("PUT", "POST") and dice.random() < 0.7:
            body, query = query.encode(), ""
            headers["Content-Type"] = FORM
        slash = dice.choice(("", "", "", "/", "//"))
        path = "/v2/keys" + "".join(f"{part}" for part in key.replace("é", "%C3%A9")) + slash
        yield method, path + (f"?{query}" if query else ""), body, headers


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(1500, marks=pytest.mark.timeout(300)),  # each write is synced, twice
        pytest.param(100_000, marks=[pytest.mark.limits_full, pytest.mark.timeout(4 * 3600)]),
    ],
)
def test_requests_without_extras_see_no_difference(make_server, tmp_path, count):
    on = make_server(data_dir=tmp_path / "on").start().client()
    off = make_server("--extras=false", data_dir=tmp_path / "off").start().client()
    for client in (on, off):
        for number in range(40):
            client.put(f"/first/{number}", number)
    for asked in requests(Random(count), count):
        assert comparable(on.request(*asked)) == comparable(off.request(*asked)), asked


@pytest.mark.parametrize("name", sorted(name.decode() for name in EXTRAS))
def test_where_extras_are_off_their_names_are_ignored(off, name):
    for value in ("true", "5", "x", "abc", ""):
        for key in ("/d", "/d/x", "/d?recursive=true"):
            joint = "&" if "?" in key else "?"
            named = off.request("GET", f"/v2/keys{key}{joint}{name}={value}")
            assert named.body == off.request("GET", f"/v2/keys{key}").body
    watched = off.request("GET", f"/v2/keys/d/x?wait=true&waitIndex=2&{name}=1")
    assert watched.json["node"]["value"] == "v"


@pytest.mark.parametrize(
    "asked",
    ["GET /v2/extras", "GET /v2/raw/d/x", "PUT /v2/raw/d/x", "DELETE /v2/raw/d/x", "POST /v2/mget"],
)
def test_where_extras_are_off_their_paths_are_none(client, off, asked):
    method, path = asked.split()
    body = b'{"keys":["/d/x"]}' if method in ("PUT", "POST") else None
    answer = off.request(method, path, body)
    assert (answer.status, answer.body) == (404, b"404 page not found\n")
    assert off.get("/d/x").json["node"]["value"] == "v"
    assert client.request(method, path, body).body != answer.body


def test_where_extras_are_off_headers_mean_nothing(off):
    for headers in ({"Accept": "text/plain"}, {"Accept": "text/plain", "If-None-Match": "*"}):
        answer = off.request("GET", "/v2/keys/d/x", headers=headers)
        assert (answer.status, answer.json["node"]["value"]) == (200, "v")
        assert "etag" not in answer.headers


def test_all_users_may_know_of_them(fresh_server):
    client = fresh_server.client()
    received = client.request("GET", "/v2/extras")
    assert received.status == 200
    assert received.headers["content-type"] == "application/json"
    assert received.json["server"] == "kvd"
    assert received.json["extras"] == sorted(received.json["extras"])
    ask_for_users(client)
    assert client.request("GET", "/v2/extras").body == received.body
    assert client.request("HEAD", "/v2/extras").status == 200
    assert client.request("PUT", "/v2/extras", b"").status == 405


def test_a_foreign_page_cannot_write_raw_values(fresh_server):
    client = fresh_server.client()
    foreign = {"Origin": "http://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    for method, path in (("PUT", "/v2/raw/x"), ("DELETE", "/v2/raw/x"), ("POST", "/v2/mget")):
        with contextlib.closing(fresh_server.client()) as page:
            assert page.request(method, path, b"v", foreign).status == 403
    assert client.get("/x").status == 404


def test_a_page_of_an_allowed_origin_may_read_raw_values(make_server):
    client: Client = make_server("--cors", "http://app.example").start().client()
    origin = {"Origin": "http://app.example"}
    assert client.request("PUT", "/v2/raw/x", b"v", origin).status == 201
    for headers in (origin, origin | {"If-None-Match": '"2"'}):
        answer = client.request("GET", "/v2/raw/x", headers=headers)
        assert answer.status in (200, 304)
        assert answer.headers["access-control-allow-origin"] == "http://app.example"
        assert answer.headers["vary"] == "Origin"
