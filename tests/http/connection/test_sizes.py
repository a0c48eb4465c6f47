"""Sizes of heads and forms, and numbers of connections and watches."""

import contextlib
import threading

import pytest

from tests.support.connections import (
    FORM_BYTES_MAX,
    HEADER_BYTES_MAX,
    VERSION,
    assert_refused,
    resident_bytes,
)
from tests.support.raw import Raw, chunked, request
from tests.support.waiting import wait_until


def padded(size: int) -> bytes:
    """A request whose head is so long, the empty line at its end apart."""
    head = request("GET", "/version", "X: ")[:-4]
    return head + b"x" * (size - len(head)) + b"\r\n\r\n"


def test_a_head_up_to_the_limit_is_served(raw):
    assert raw.send(padded(HEADER_BYTES_MAX)).answer().status == 200


@pytest.mark.parametrize(
    "sent",
    [padded(HEADER_BYTES_MAX + 1), padded(HEADER_BYTES_MAX + 1)[:-4], padded(1 << 20)],
    ids=["one more", "without its end", "far more"],
)
def test_a_longer_head_is_refused(raw, sent):
    assert_refused(raw.send(sent).answer(), 431, "Request Header Fields Too Large")
    assert raw.closed()


def test_a_long_key_is_served_up_to_the_limit(raw):
    key = "/v2/keys/" + "k" * 60_000
    assert raw.send(request("PUT", key, body=b"value=1")).answer().status == 201
    assert raw.ask("GET", key).status == 200
    assert raw.ask("DELETE", key).status == 200


@pytest.mark.parametrize("framing", [request, chunked], ids=["length", "chunks"])
def test_a_form_up_to_the_limit_is_served(raw, framing):
    form = b"value=" + b"v" * (FORM_BYTES_MAX - 6)
    sent = (
        request("PUT", "/v2/keys/large", body=form)
        if framing is request
        else chunked("PUT", "/v2/keys/large", form[:1], form[1:])
    )
    assert raw.send(sent).answer().status in (200, 201)
    assert len(raw.ask("GET", "/v2/keys/large").json["node"]["value"]) == FORM_BYTES_MAX - 6
    assert raw.ask("DELETE", "/v2/keys/large").status == 200


@pytest.mark.parametrize("more", [1, 1 << 20], ids=["one more", "far more"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_larger_form_is_refused(server, raw, framing, more):
    form = b"value=" + b"v" * (FORM_BYTES_MAX - 6 + more)
    if framing == "length":
        sent = request("PUT", "/v2/keys/larger", body=form)
    else:
        sent = chunked("PUT", "/v2/keys/larger", form[:1], form[1:])
    sender = threading.Thread(target=_send_anyway, args=[raw, sent])
    sender.start()
    answer = raw.answer()
    assert (answer.status, answer.json["errorCode"]) == (400, 210)
    assert answer.json["cause"] == "http: POST too large"
    assert answer.headers["connection"] == "close"
    assert raw.closed()
    sender.join()


def _send_anyway(raw: Raw, sent: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        raw.send(sent)


def test_a_large_body_that_is_no_form_is_not_kept(server, raw):
    before = resident_bytes(server)
    size = 64 << 20
    raw.send(
        f"PUT /v2/keys/none HTTP/1.1\r\nHost: h\r\nContent-Length: {size}\r\n\r\n".encode(),
        *(bytes(1 << 20) for _ in range(size >> 20)),
    )
    assert raw.answer().json["node"]["value"] == ""
    assert resident_bytes(server) - before < 32 << 20
    assert raw.ask("DELETE", "/v2/keys/none").status == 200


def test_a_large_body_on_another_route_is_refused(server, raw):
    raw.send(request("POST", "/v2/members", f"Content-Length: {64 << 20}"))
    sender = threading.Thread(target=_send_anyway, args=[raw, bytes(64 << 20)])
    sender.start()
    assert_refused(raw.answer(), 413)
    assert raw.closed()
    sender.join()


def test_connections_beyond_the_limit_are_refused(make_server):
    server = make_server("--max-connections", "3", "--max-watchers", "3").start()
    kept = [Raw(server.port) for _ in range(3)]
    for connection in kept:
        assert connection.send(request("GET", "/v2/keys/w?wait=true")).head().status == 200
    with Raw(server.port) as fourth:
        assert_refused(fourth.ask("GET", "/version"), 503, "too many connections")
        assert fourth.closed()
    with Raw(server.port) as silent:
        assert_refused(silent.answer(), 503, "too many connections")
    kept.pop().close()

    def is_served_again():
        with Raw(server.port) as again:
            return again.send(VERSION).answer().status == 200

    wait_until(is_served_again)
    for connection in kept:
        connection.close()


def test_watches_beyond_the_limit_are_refused(make_server):
    server = make_server("--max-watchers", "2").start()
    client = server.client()
    watches = [server.watch("/w") for _ in range(2)]
    refused = client.get("/w", wait="true")
    assert (refused.status, refused.json["errorCode"]) == (500, 300)
    client.put("/w", 1)
    assert [watch.event()["action"] for watch in watches] == ["set", "set"]
    assert server.watch("/w").head.status == 200
