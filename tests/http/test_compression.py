"""Compressed answers, over HTTP."""

import gzip
import json
import os
from collections.abc import Iterator

import pytest

from kvd.http.compression import accepts_gzip
from tests.handlers.keys.test_answer_memory import held_bytes
from tests.support.memory import MIB, rejected
from tests.support.raw import Raw, request
from tests.support.server import Answer, Client, Server, running

MIN = 1000
GZIP = {"Accept-Encoding": "gzip, deflate"}
GZIP_TOO = b"Accept-Encoding: gzip\r\n"


@pytest.fixture(scope="module", params=["plain", "logged"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    flags = ["--gzip-min-bytes", str(MIN)]
    if request.param == "logged":
        flags.append("--access-log")
    for started in running(Server(tmp_path_factory.mktemp("data"), *flags)):
        fill(started.client())
        yield started


VALUES = {
    "small": b"v",
    "middle": b"middle " * 1000,
    "large": os.urandom(20_000).hex().encode() * 20,
    "control": b"\x01\x02" * 100_000,
    "wide": "é\u2028<".encode() * 50_000,
    "bytes": os.urandom(300_000),
}


def fill(client: Client) -> None:
    for name, value in VALUES.items():
        put = client.request("PUT", f"/v2/raw/values/{name}?noValueOnSuccess=true", value)
        assert put.status == 201
    for number in range(500):
        client.put(f"/dir/{number}", f"value {number}")


TARGETS = [
    *(f"/v2/keys/values/{name}" for name in VALUES),
    *(f"/v2/raw/values/{name}" for name in VALUES),
    *("/v2/keys/values", "/v2/keys/?recursive=true", "/v2/keys/dir", "/v2/keys/dir?limit=400"),
    *("/v2/keys/values?base64=true", "/v2/keys/dir?find=value", "/v2/keys/dir?count=true"),
]


def unpacked(answer: Answer) -> bytes:
    if answer.headers.get("content-encoding") == "gzip":
        return gzip.decompress(answer.body)
    return answer.body


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_compressed_is_the_same(client, target):
    for _ in range(3):  # kept listings and files, too
        plain = client.request("GET", target)
        packed = client.request("GET", target, headers=GZIP)
        assert packed.status == plain.status == 200
        assert "content-encoding" not in plain.headers
        assert unpacked(packed) == plain.body
        is_large = len(plain.body) >= MIN
        assert ("content-encoding" in packed.headers) == is_large
        assert packed.headers.get("vary") == ("Accept-Encoding" if is_large else None)
        assert "vary" not in plain.headers
        for name in ("x-etcd-index", "content-type", "etag", "x-raft-term"):
            assert packed.headers.get(name) == plain.headers.get(name)
        if "large" not in target and "bytes" not in target and is_large:
            assert len(packed.body) < len(plain.body)


def test_write_answers_are_compressed(client):
    value = "v" * 5000
    for body in ({"value": value}, {"value": value}, {"value": "x" * 200_000}):
        answer = client.request("PUT", "/v2/keys/written", body, GZIP)
        assert answer.headers["content-encoding"] == "gzip"
        assert json.loads(unpacked(answer))["node"]["value"] == body["value"]
    short = client.request("PUT", "/v2/keys/written?noValueOnSuccess=true", {"value": value}, GZIP)
    assert short.body == b'{"action":"set"}\n'


def test_several_keys_are_compressed(client):
    body = json.dumps({"keys": [f"/dir/{n}" for n in range(300)]})
    plain = client.request("POST", "/v2/mget", body)
    packed = client.request("POST", "/v2/mget", body, GZIP)
    assert packed.headers["content-encoding"] == "gzip"
    assert unpacked(packed) == plain.body


def test_what_has_no_body_to_be_compressed_is_sent_as_it_is(client):
    head = client.request("HEAD", "/v2/keys/dir", headers=GZIP)
    assert "content-encoding" not in head.headers
    tag = client.request("GET", "/v2/raw/values/middle").headers["etag"]
    unchanged = client.request(
        "GET", "/v2/raw/values/middle", headers=GZIP | {"If-None-Match": tag}
    )
    assert unchanged.status == 304
    assert "content-encoding" not in unchanged.headers


def test_errors_are_not_compressed(client):
    answer = client.request("GET", f"/v2/keys/{'missing/' * 300}", headers=GZIP)
    assert answer.json["errorCode"] == 100
    swap = {"value": "x", "prevValue": "y" * 3000}
    failed = client.request("PUT", "/v2/keys/values/middle", swap, GZIP)
    assert failed.json["errorCode"] == 101
    assert "content-encoding" not in failed.headers


def test_watches_are_not_compressed(client):
    made = client.put("/watched", "v" * 5000).json["node"]
    target = f"/v2/keys/watched?wait=true&waitIndex={made['modifiedIndex']}"
    answer = client.request("GET", target, headers=GZIP)
    assert "content-encoding" not in answer.headers
    assert answer.json["node"] == made


def test_each_request_is_answered_as_it_asks(server):
    """On one connection, as through a proxy: what another request accepts counts for nothing."""
    with Raw(server.port) as raw:
        for target in ("/v2/keys/dir", "/v2/keys/values/middle", "/v2/keys/values/control"):
            plain = request("GET", target)
            packed = plain.replace(b"\r\n\r\n", b"\r\n" + GZIP_TOO + b"\r\n")
            raw.send((packed + plain) * 3)
            for _ in range(3):
                first, second = raw.answer(), raw.answer()
                assert first.headers["content-encoding"] == "gzip"
                assert "content-encoding" not in second.headers
                assert gzip.decompress(first.body) == second.body


def test_http_1_0_may_accept_it_too(server):
    with Raw(server.port) as raw:
        raw.send(b"GET /v2/keys/values/wide HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n")
        answer = raw.answer()
    shown = json.loads(gzip.decompress(answer.body))["node"]["value"]
    assert shown == VALUES["wide"].decode()


def test_with_cors_both_are_named(make_server):
    client = make_server("--gzip-min-bytes", "10", "--cors", "*").start().client()
    client.put("/x", "v" * 100)
    with Raw(client._connection.port) as raw:
        raw.send(request("GET", "/v2/keys/x").replace(b"\r\n\r\n", b"\r\n" + GZIP_TOO + b"\r\n"))
        lines = raw._file.readline, []
        while (line := lines[0]()) != b"\r\n":
            lines[1].append(line)
    assert b"Vary: Origin\r\n" in lines[1]
    assert b"Vary: Accept-Encoding\r\n" in lines[1]


def test_it_is_off_by_default(fresh_server):
    client = fresh_server.client()
    client.put("/x", "v" * 100_000)
    for target in ("/v2/keys/x", "/v2/keys/", "/v2/raw/x"):
        plain = client.request("GET", target)
        asked = client.request("GET", target, headers=GZIP)
        assert asked.body == plain.body
        assert asked.headers | {"date": ""} == plain.headers | {"date": ""}


def test_clients_that_do_not_read_take_no_more_memory(make_server):
    server = make_server("--gzip-min-bytes", "1000", "--max-buffered-bytes", str(20 * MIB)).start()
    client = server.client()
    value = os.urandom(3 * MIB)
    client.request("PUT", "/v2/raw/v?noValueOnSuccess=true", value)
    lazy = [Raw(server.port, receive_buffer=4096) for _ in range(30)]
    asked = request("GET", "/v2/raw/v").replace(b"\r\n\r\n", b"\r\nAccept-Encoding: gzip\r\n\r\n")
    for raw in lazy:
        raw.send(asked)
    assert unpacked(client.request("GET", "/v2/raw/v", headers=GZIP)) == value
    assert held_bytes(client) <= 20 * MIB
    assert rejected(client, "answer_not_read") == 0
    for raw in lazy:
        raw.close()


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("GZip", True),
        ("x-gzip", True),
        ("deflate, gzip;q=0.1", True),
        ("*", True),
        ("br, *;q=0.5", True),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*, gzip;q=0", False),
        ("deflate", False),
        (",;,", False),
    ],
)
def test_a_header_accepts_gzip_or_not(header, accepted):
    assert accepts_gzip(header) == accepted
