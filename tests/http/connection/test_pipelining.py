"""Many requests on one connection: in order, and each on its own."""

import re
from collections.abc import Iterator

import pytest

from tests.support.connections import (
    CLOSE,
    FIXED,
)
from tests.support.raw import chunked, request

MIXED = [
    (request("PUT", "/v2/keys/mix/a", body=b"value=1"), 201, "PUT"),
    (request("GET", "/v2/keys/mix/a"), 200, "GET"),
    (chunked("PUT", "/v2/keys/mix/a", b"val", b"ue=2"), 200, "PUT"),
    (request("HEAD", "/v2/keys/mix/a"), 200, "HEAD"),
    (request("GET", "/v2/keys/mix/none"), 404, "GET"),
    (request("POST", "/v2/keys/mix/q", body=b"value=3"), 201, "POST"),
    (request("GET", "/version"), 200, "GET"),
    (request("HEAD", "/nothing"), 404, "HEAD"),
    (request("GET", "/v2/keys//mix"), 301, "GET"),
    (request("OPTIONS", "/anything"), 200, "OPTIONS"),
    (request("PATCH", "/v2/keys/mix/a", body=b"ignored"), 405, "PATCH"),
    (request("PUT", "/v2/keys/mix/a", body=b"ttl=x"), 400, "PUT"),
    (request("DELETE", "/v2/keys/mix?recursive=true"), 200, "DELETE"),
    (request("POST", "/v2/members", body=b"{}"), 415, "POST"),
]


@pytest.mark.parametrize("size", [1 << 20, 1, 7, 100], ids=lambda size: f"{size} bytes at once")
def test_fifty_pipelined_requests_are_answered_in_order(raw, size):
    requests = (MIXED * 4)[:56]
    stream = b"".join(sent for sent, _, _ in requests)
    raw.send(*(stream[i : i + size] for i in range(0, len(stream), size)))
    for sent, status, method in requests:
        assert raw.answer(method).status == status, sent
    assert raw.ask("GET", "/version").status == 200


BOTH_WAYS = [
    ("GET", "", None),
    ("PUT", "", b"value=1"),
    ("GET", "", None),
    ("GET", "?recursive=true&sorted=true", None),
    ("PUT", "", b"value=a%20b+c&ttl=1000"),
    ("GET", "", None),
    ("PUT", "?prevExist=true", b"value=2"),
    ("PUT", "?prevValue=1", b"value=3"),
    ("PUT", "?prevValue=2&noValueOnSuccess=true", b"value=3"),
    ("PUT", "?prevExist=false", b"value=4"),
    ("PUT", "", b"value=5;6"),
    ("PUT", "", b"value=%zz"),
    ("PUT", "?ttl=x", b""),
    ("PUT", "?value=7", None),
    ("DELETE", "?prevIndex=1", None),
    ("DELETE", "", None),
    ("DELETE", "", None),
    ("POST", "", b"value=8"),
    ("GET", "", None),
    ("PUT", "", b"value=9"),
    ("DELETE", "?dir=true", b"value=ignored"),
    ("DELETE", "?recursive=true", None),
    ("GET", "?wait=x", None),
]


def test_the_short_way_answers_as_the_long_way_does(raw):
    """A key that is escaped in the target is served by way of Tornado's interface."""

    def answers(target: str) -> Iterator[tuple[int, dict[str, str], str]]:
        for method, query, body in BOTH_WAYS:
            answer = raw.ask(method, target + query, body=body)
            text = re.sub(r"way.|/0{9}\d+|[12]\d{3}-[^\"]*Z", "*", answer.body.decode())
            text = re.sub(r"(?<=Index\":|index\":)\d+|(?<= != )\d+", "N", text)
            headers = {name: value for name, value in answer.headers.items() if name in FIXED}
            yield answer.status, headers, text

    assert list(answers("/v2/keys/wayx")) == list(answers("/v2/keys/way%79"))


def test_a_pipelined_read_sees_the_write_before_it(raw):
    raw.send(
        b"".join(
            request("PUT", "/v2/keys/seen", body=b"value=%d" % i) + request("GET", "/v2/keys/seen")
            for i in range(50)
        )
    )
    for i in range(50):
        written, read = raw.answer(), raw.answer()
        assert written.json["node"] == read.json["node"]
        assert read.json["node"]["value"] == str(i)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("GET", "/v2/keys/none"), 404),
        (request("GET", "/v2/keys/?wait=x"), 400),
        (request("PUT", "/v2/keys/f", body=b"value=%zz"), 400),
        (request("PUT", "/v2/keys/", body=b"value=1"), 400),
        (request("DELETE", "/v2/keys/none"), 404),
        (request("PATCH", "/v2/keys/f"), 405),
        (request("GET", "/v2/keys//f"), 301),
        (request("PUT", "/v2/keys//f", body=b"value=1"), 301),
        (request("GET", "/nothing"), 404),
        (request("POST", "/version", body=b"x=1"), 405),
        (request("OPTIONS", "/nothing", body=b"x=1"), 200),
        (request("GET", "/v2/keys/f", body=b"a body where none is read: %zz"), 404),
    ],
)
def test_a_connection_stays_open_after_a_refusal(raw, sent, status):
    for _ in range(2):
        answer = raw.send(sent).answer()
        assert answer.status == status
        assert "connection" not in answer.headers
    assert raw.ask("GET", "/version").status == 200


def test_a_connection_can_be_used_after_a_watch(raw, client):
    for i in range(3):
        raw.send(request("GET", "/v2/keys/again?wait=true"))
        assert raw.head().headers["transfer-encoding"] == "chunked"
        # A request sent during the watch waits for its end.
        raw.send(request("GET", "/v2/keys/again"))
        client.put("/again", i)
        (event,) = raw.chunks()
        assert f'"value":"{i}"'.encode() in event
        assert raw.answer().json["node"]["value"] == str(i)


def test_many_reads_go_on_while_a_watch_is_open(server, client):
    client.put("/busy", 1)
    watch = server.watch("/busy")
    for _ in range(500):
        assert client.get("/busy").status == 200
    client.put("/busy", 2)
    assert watch.event()["node"]["value"] == "2"


def test_connection_close_is_done_and_said(raw):
    answer = raw.ask("GET", "/v2/keys/", CLOSE)
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert raw.closed()


def test_connection_close_ends_the_pipeline(raw, client):
    raw.send(request("GET", "/version", CLOSE), request("PUT", "/v2/keys/behind", body=b""))
    assert raw.answer().status == 200
    assert raw.closed()
    assert client.get("/behind").status == 404


def test_every_answer_has_a_date_and_a_name(raw):
    for target in ("/v2/keys/", "/v2/keys/none", "/version", "/nothing", "/v2//keys"):
        headers = raw.ask("GET", target).headers
        assert headers["server"].startswith("kvd/")
        assert headers["date"].endswith(" GMT")
