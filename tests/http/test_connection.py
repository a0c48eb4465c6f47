"""Connections: everything that can come over a socket, and that the server outlives all of it."""

import contextlib
import random
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvd.storage.tools.bulk_load import bulk_load
from tests.monitoring.test_metrics import scrape
from tests.support.raw import Raw, chunked, request
from tests.support.server import FORM, PATIENCE_S, Client, Server, running

TEXT = "text/plain; charset=utf-8"
CLOSE = "Connection: close"
VERSION = request("GET", "/version")
FORM_BYTES_MAX = 10 << 20
HEADER_BYTES_MAX = 64 << 10
LARGE = 6000
# Headers that are the same whenever the same is answered.
FIXED = ("content-type", "x-etcd-cluster-id", "x-raft-term", "server")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is patient: `nobody_else_is_touched` leaves half a head with it for a while."""
    yield from running(Server(tmp_path_factory.mktemp("data"), "--header-timeout-s", "600"))


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    with Raw(server.port) as connection:
        yield connection


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that gives its clients little time."""
    yield from running(
        Server(
            tmp_path_factory.mktemp("data"),
            *("--header-timeout-s", "1", "--body-timeout-s", "1", "--idle-timeout-s", "2"),
        )
    )


@pytest.fixture(autouse=True)
def nobody_else_is_touched(server: Server) -> Iterator[None]:
    """Whatever a test does to its connections, another one goes on as if nothing had happened."""
    with Raw(server.port) as other:
        other.send(b"GET /v2/keys/none HT")
        yield
        answer = other.send(b"TP/1.1\r\nHost: h\r\n\r\n").answer()
        assert answer.status == 404
        assert answer.json["errorCode"] == 100


def wait_until(holds) -> None:
    """Ask again and again, which takes its time by itself."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it does not come true"


def watchers(client: Client) -> int:
    return client.request("GET", "/v2/stats/store").json["watchers"]


def resident_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def assert_refused(answer, status, detail="", headers=()):
    """It is the answer of HTTP itself, which ends the connection."""
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == TEXT
    assert "x-etcd-cluster-id" not in answer.headers
    assert answer.body.decode().startswith(str(status))
    assert answer.body.decode().endswith(detail)


# One connection, many requests.

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


# HTTP/1.0 and what is no HTTP/1.1.


def test_http_1_0_closes_after_the_answer(raw):
    raw.send(b"GET /v2/keys/ HTTP/1.0\r\n\r\n" + VERSION)
    answer = raw.answer()
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert raw.closed()


@pytest.mark.parametrize("target", ["/v2/keys/", "/v2/keys/none", "/version", "/nothing"])
def test_http_1_0_keeps_the_connection_when_asked(raw, target):
    for _ in range(2):
        raw.send(f"GET {target} HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n".encode())
        assert raw.answer().headers["connection"] == "keep-alive"


def test_an_http_1_0_watch_ends_with_the_connection(raw, server, client):
    raw.send(b"GET /v2/keys/ten?wait=true HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head = raw.head()
    assert head.headers["connection"] == "close"
    assert not {"transfer-encoding", "content-length"} & head.headers.keys()
    client.put("/ten", 1)
    assert raw.rest().endswith(b'"createdIndex":%d}}\n' % client.get("/ten").index)


def test_an_http_1_0_request_with_chunks_ends_the_connection(raw):
    body = b"7\r\nvalue=x\r\n0\r\n\r\n"
    raw.send(
        b"PUT /v2/keys/f10 HTTP/1.0\r\nConnection: keep-alive\r\nContent-Type: %b\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n" % FORM.encode() + body + VERSION
    )
    assert raw.answer().headers["connection"] == "close"
    assert raw.closed()


def test_a_request_without_a_host_is_refused(raw):
    raw.send(b"GET /version HTTP/1.1\r\n\r\n")
    assert_refused(raw.answer(), 400, "Bad Request: missing required Host header")
    assert raw.closed()


@pytest.mark.parametrize("target", ["/version", "/v2/keys/", "/nothing"])
@pytest.mark.parametrize("host", ["a b", "a\r\nHost: b", "\xff", "a/b"])
def test_a_malformed_host_is_refused(raw, target, host):
    raw.send(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
    assert_refused(raw.answer(), 400, "malformed Host header")
    assert raw.closed()


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/2.0",
        b"GET foo HTTP/1.1",
        b"GET a:b HTTP/1.1",
        b"GET ://h/ HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_request_line_is_refused(raw, line):
    """Of the lines that the parser refuses (test_request_parser.py) the first, and TLS."""
    raw.send(line + b"\r\nHost: h\r\n\r\n" + VERSION)
    assert_refused(raw.answer(), 400)
    assert raw.closed()


OLD_HEADS = {
    "LF alone": b"PUT /v2/keys/old HTTP/1.1\nHost: h\nContent-Type: %b\nContent-Length: 7\n\n",
    "LF alone, HTTP/1.0": b"PUT /v2/keys/old HTTP/1.0\nContent-Type: %b\nContent-Length: 7\n\n",
    "LF at the end": b"PUT /v2/keys/old HTTP/1.1\r\nHost: h\r\nContent-Type: %b\r\n"
    b"Content-Length: 7\r\n\n",
}


@pytest.mark.parametrize("size", [1 << 20, 1], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("form", OLD_HEADS)
def test_a_head_with_line_feeds_alone_is_the_last_of_its_connection(raw, client, form, size):
    stream = OLD_HEADS[form] % FORM.encode() + b"value=1" + EVIL
    with contextlib.suppress(ConnectionError):  # it has been answered before its end
        raw.send(*(stream[i : i + size] for i in range(0, len(stream), size)))
    answer = raw.answer()
    assert answer.json["node"]["value"] == "1"
    assert answer.headers["connection"] == "close"
    assert raw.closed()
    assert client.get("/evil").status == 404


def test_line_ends_that_can_be_read_in_two_ways_are_refused(raw):
    assert_refused(raw.send(b"GET /version HTTP/1.1\nHost: h\r\n\r\n" + VERSION).answer(), 400)
    assert raw.closed()


@pytest.mark.parametrize("times", [1, 2])
def test_equal_lengths_and_folded_fields_are_taken(raw, times):
    for _ in range(times):  # the second time from the cache
        answer = raw.ask(
            "PUT", "/v2/keys/old", "Content-Length: 7", "User-Agent: a\r\n\tb", body=b"value=2"
        )
        assert answer.json["node"]["value"] == "2"


def test_empty_lines_before_a_request_are_passed_over(raw):
    assert raw.send(b"\r\n\r\n\r\n" + VERSION).answer().status == 200
    assert raw.send(b"\r", b"\n", VERSION).answer().status == 200


def test_a_flood_of_empty_lines_holds_nobody_up(server, raw):
    started = time.monotonic()
    raw.send(b"\r\n" * (4 << 20) + VERSION)
    assert raw.answer().status == 200
    assert time.monotonic() - started < PATIENCE_S / 2


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"get /v2/keys/none", 405),
        (b"Get /version", 405),
        (b"BREW /v2/keys/none", 405),
        (b"BREW /version", 405),
        (b"BREW /nothing", 404),
        (b"CONNECT /v2/keys/none", 405),
        (b"CONNECT /v2/keys//none", 405),
        (b"CONNECT h:443", 404),
        (b"OPTIONS *", 200),
        (b"GET http://h/version", 200),
        (b"GET HTTP://H/version?x", 200),
        (b"GET http://h/v2/keys/none?x", 404),
        (b"GET http://h/v2//keys", 301),
        (b"GET /v%65rsion", 200),
        (b"GET /%76%32/keys/", 200),
        (b"GET /version?%zz", 200),
        (b"GET /v2/keys/\xff", 404),
        (b"GET /\xff", 404),
    ],
)
def test_methods_and_targets_of_all_kinds(raw, line, status):
    assert raw.send(line + b" HTTP/1.1\r\nHost: h\r\n\r\n").answer().status == status
    assert raw.ask("GET", "/version").status == 200


def test_a_star_is_refused_without_a_body(raw):
    answer = raw.send(b"GET * HTTP/1.1\r\nHost: h\r\n\r\n").answer()
    assert (answer.status, answer.body, answer.headers["connection"]) == (400, b"", "close")
    assert raw.closed()


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "BREW"])
@pytest.mark.parametrize("target", ["/v2/keys/%zz", "/%", "/version%4"])
def test_a_bad_escape_in_a_path_is_refused(raw, method, target):
    raw.send(request(method, target, body=b"value=1") + VERSION)
    answer = raw.answer()
    assert_refused(answer, 400)
    assert answer.body == b"400 Bad Request"
    assert raw.closed()


def test_an_upgrade_is_not_taken_up(raw):
    for _ in range(2):
        answer = raw.ask("GET", "/version", "Connection: Upgrade", "Upgrade: websocket")
        assert answer.status == 200


# Bodies.


def test_a_chunked_body_split_at_every_byte(raw):
    sent = chunked("PUT", "/v2/keys/split", b"value=", b"a b+c", b"%41")
    for cut in range(1, len(sent)):
        raw.send(sent[:cut], sent[cut:])
        answer = raw.answer()
        assert answer.json["node"]["value"] == "a b cA", cut


def test_extensions_and_trailers_are_dropped(raw):
    raw.send(
        request("PUT", "/v2/keys/ext", f"Content-Type: {FORM}", "Transfer-Encoding: chunked")
        + b'7;name="va;lue"\r\nvalue=x\r\n0;z\r\nContent-Length: 5\r\nHost: other\r\n\r\n'
        + VERSION
    )
    assert raw.answer().json["node"]["value"] == "x"
    assert raw.answer().body.startswith(b'{"etcdserver"')


@pytest.mark.parametrize("body", [b"x\r\n", b"7\r\nvalue=xy\r\n0\r\n\r\n"])
def test_a_malformed_chunk_is_refused(raw, client, body):
    head = request("PUT", "/v2/keys/bad", f"Content-Type: {FORM}", "Transfer-Encoding: chunked")
    raw.send(head + body + request("PUT", "/v2/keys/bad", body=b"value=evil"))
    assert_refused(raw.answer(), 400)
    assert raw.closed()
    assert client.get("/bad").status == 404


EVIL = request("PUT", "/v2/keys/evil", body=b"value=evil")
SMUGGLED = {
    "CL.TE": f"Content-Length: {len(EVIL) + 5}\r\nTransfer-Encoding: chunked",
    "TE.CL": f"Transfer-Encoding: chunked\r\nContent-Length: {len(EVIL) + 5}",
    "CL.CL": f"Content-Length: 5\r\nContent-Length: {len(EVIL) + 5}",
    "CL,CL": f"Content-Length: 5, {len(EVIL) + 5}",
    "TE.TE": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "TE x": "Transfer-Encoding: xchunked",
    "TE blank": "Transfer-Encoding : chunked",
    "TE folded": "Transfer-Encoding:\r\n chunked",
    "TE tab": "Transfer-Encoding:\x0bchunked",
    "TE gzip": "Transfer-Encoding: gzip, chunked",
    "LF": f"X: y\nContent-Length: {len(EVIL) + 5}",
    "CR": f"X: y\rContent-Length: {len(EVIL) + 5}",
}


@pytest.mark.parametrize("shape", SMUGGLED)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_smuggled_request_is_refused_with_its_carrier(raw, client, shape, method):
    raw.send(request(method, "/v2/keys/carrier", SMUGGLED[shape]) + b"0\r\n\r\n" + EVIL)
    assert_refused(raw.answer(), 400)
    assert raw.closed()
    assert client.get("/evil").status == 404
    assert client.get("/carrier").status == 404


def test_what_is_expected_is_granted_before_the_body(raw):
    sent = request("PUT", "/v2/keys/exp", "Expect: 100-continue", body=b"value=later")
    raw.send(sent[:-11])
    assert raw.answer().status == 100
    assert raw.send(b"value=later").answer().json["node"]["value"] == "later"
    # Nobody waits for permission who has sent the body already.
    assert raw.send(sent).answer().status == 200


def test_chunks_are_granted_too(raw):
    head = request("PUT", "/v2/keys/exp2", "Expect: 100-Continue", "Transfer-Encoding: chunked")
    assert raw.send(head).answer().status == 100
    assert raw.send(b"0\r\n\r\n").answer().status == 201


def test_permission_is_given_for_a_body_only(raw):
    assert raw.ask("GET", "/version", "Expect: 100-continue").status == 200
    raw.send(b"GET /version HTTP/1.0\r\nExpect: anything\r\n\r\n")
    assert raw.answer().status == 200


@pytest.mark.parametrize("body", [None, b"value=1"])
def test_other_expectations_fail(raw, client, body):
    raw.send(request("PUT", "/v2/keys/exp3", "Expect: 200-ok", body=body) + VERSION)
    assert_refused(raw.answer(), 417)
    assert raw.closed()
    assert client.get("/exp3").status == 404


# Limits.


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


# Time.


@pytest.mark.parametrize(
    "sent",
    [b"G", b"GET / HTTP/1.1\r\nHost: h\r\n", VERSION + b"GET"],
    ids=["a byte", "a line", "second"],
)
def test_a_head_that_takes_too_long_is_given_up(impatient, sent):
    with Raw(impatient.port) as raw:
        raw.send(sent)
        if sent.startswith(VERSION):
            assert raw.answer().status == 200
        assert_refused(raw.answer(), 408)
        assert raw.closed()


@pytest.mark.parametrize("sent", [
    request("PUT", "/v2/keys/slow", body=b"value=1")[:-1],
    chunked("PUT", "/v2/keys/slow", b"value=1")[:-1],
    request("POST", "/v2/members", body=b"{}")[:-1],
])  # fmt: skip
def test_a_body_that_takes_too_long_is_given_up(impatient, sent):
    with Raw(impatient.port) as raw:
        assert_refused(raw.send(sent).answer(), 408)
        assert raw.closed()
    assert impatient.client().get("/slow").status == 404


def test_a_trickle_does_not_prolong_the_time(impatient):
    with Raw(impatient.port) as raw:
        stop = threading.Event()

        def trickle():
            try:
                for byte in request("GET", "/version", "X: " + "x" * 10_000):
                    raw.send(bytes((byte,)))
                    if stop.wait(0.05):
                        return
            except ConnectionError:
                pass

        sender = threading.Thread(target=trickle)
        sender.start()
        assert raw.head().status == 408
        stop.set()
        sender.join()


def test_an_idle_connection_is_closed_without_a_word(impatient):
    with Raw(impatient.port) as used:
        assert used.ask("GET", "/version").status == 200
        with Raw(impatient.port) as unused:
            assert unused.closed()
        assert used.closed()


def test_idle_connections_that_are_closed_are_counted_and_others_are_not(make_server):
    server = make_server("--idle-timeout-s", "1", "--header-timeout-s", "1").start()
    with Raw(server.port) as idle, Raw(server.port) as slow:
        assert_refused(slow.send(b"GET").answer(), 408)
        assert idle.closed()
    assert scrape(server.client())["kvd_connections_idle_closed_total"] == 1


def test_no_time_is_cut_short(make_server):
    server = make_server("--header-timeout-s", "1").start()
    with contextlib.ExitStack() as stack:
        # Whatever the server does once a second, one of these comes just before it.
        began = []
        for _ in range(10):
            began.append((time.monotonic(), stack.enter_context(Raw(server.port)).send(b"GET")))
            time.sleep(0.1)
        for since, raw in began:
            assert_refused(raw.answer(), 408)
            assert time.monotonic() - since >= 1


def test_the_time_of_a_head_counts_from_its_first_byte(make_server):
    server = make_server("--header-timeout-s", "1").start()
    with Raw(server.port) as silent, Raw(server.port) as begun:
        assert_refused(begun.send(b"GET").answer(), 408)
        assert silent.ask("GET", "/version").status == 200


def test_the_time_of_a_head_is_none_of_the_idle_time(make_server):
    server = make_server("--idle-timeout-s", "1").start()
    with Raw(server.port) as begun, Raw(server.port) as silent:
        whole = request("GET", "/version")
        begun.send(whole[:9])
        assert silent.closed()
        assert begun.send(whole[9:]).answer().status == 200
        assert begun.closed()


def test_the_time_of_a_body_is_none_of_its_head(make_server):
    server = make_server("--header-timeout-s", "1").start()
    with Raw(server.port) as body, Raw(server.port) as head:
        whole = request("PUT", "/v2/keys/slow", body=b"value=1")
        body.send(whole[:-3])
        assert_refused(head.send(b"GET").answer(), 408)
        assert body.send(whole[-3:]).answer().status == 201


def test_a_watch_is_not_idle(impatient):
    watch = impatient.watch("/w")
    with Raw(impatient.port) as idle:
        assert idle.closed()
        impatient.client().put("/w", 1)
        assert watch.event()["action"] == "set"


def test_a_client_that_never_reads_its_last_answer_is_cut(make_server):
    server = make_server("--write-timeout-s", "1").start()
    client = server.client()
    client.put("/big", "x" * (8 << 20))
    unread = 'kvd_rejected_requests_total{reason="answer_not_read"}'
    with Raw(server.port, receive_buffer=4096) as raw:
        raw.send(request("GET", "/v2/keys/big", CLOSE))
        wait_until(lambda: scrape(client)[unread] == 1)
        assert len(raw.rest()) < 8 << 20


def test_no_client_that_does_not_read_is_cut_early(make_server):
    server = make_server("--write-timeout-s", "1").start()
    client = server.client()
    client.put("/big", "x" * (8 << 20))
    client.put("/some", "x" * (64 << 10))
    unread = 'kvd_rejected_requests_total{reason="answer_not_read"}'
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(server.port, receive_buffer=4096)) for _ in range(10)]
        for raw in raws:
            # What its kernel takes is taken: from now on nothing more is read of it.
            raw.send(request("GET", "/v2/keys/some"))
        time.sleep(0.5)
        # Whatever the server does once a second, one of these comes just before it.
        began = []
        for raw in raws:
            began.append(time.monotonic())
            raw.send(request("GET", "/v2/keys/big"))
            time.sleep(0.1)
        for number, since in enumerate(began):
            wait_until(lambda cut=number: scrape(client)[unread] > cut)
            assert time.monotonic() - since >= 1


# Clients that go.


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"PUT /v2/ke",
        b"PUT /v2/keys/gone HTTP/1.1\r\nHost: h\r\nContent-Le",
        request("PUT", "/v2/keys/gone", body=b"value=1")[:-1],
        chunked("PUT", "/v2/keys/gone", b"value=1")[:-1],
        request("POST", "/v2/members", body=b"{}")[:-1],
    ],
    ids=["nothing", "line", "head", "body", "chunks", "other"],
)
@pytest.mark.parametrize("way", ["close", "reset", "half_close"])
def test_a_request_without_its_end_is_dropped(server, client, sent, way):
    with Raw(server.port) as raw:
        raw.send(sent)
        getattr(raw, way)()
        if way == "half_close":
            assert raw.closed()
    assert client.get("/gone").status == 404


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_client_may_go_before_its_answers(server, client, way):
    client.put("/big", "x" * (4 << 20))
    for _ in range(5):
        raw = Raw(server.port, receive_buffer=4096)
        raw.send(
            request("PUT", "/v2/keys/left", body=b"value=1"),
            request("GET", "/v2/keys/big") * 20,
            request("GET", "/v2/keys/?recursive=true"),
        )
        getattr(raw, way)()
    assert client.delete("/big").status == 200
    assert client.get("/").status == 200


def test_a_half_closed_connection_gets_all_its_answers(raw):
    sent = [request("PUT", f"/v2/keys/half/{i}", body=b"value=1") for i in range(20)]
    raw.send(b"".join(sent), request("GET", "/version")).half_close()
    for _ in sent:
        assert raw.answer().status == 201
    assert raw.answer().status == 200
    assert raw.closed()


def test_a_half_closed_connection_gets_more_than_fits_its_buffers(server, client):
    client.put("/big", "x" * (1 << 20))
    with Raw(server.port, receive_buffer=4096) as raw:
        raw.send(request("GET", "/v2/keys/big") * 10).half_close()
        for _ in range(10):
            assert len(raw.answer().body) > 1 << 20
        assert raw.closed()
    client.delete("/big")


@pytest.mark.parametrize("behind", [b"", request("PUT", "/v2/keys/half-watch", body=b"")])
def test_a_half_closed_watch_ends(server, client, behind):
    with Raw(server.port) as raw:
        raw.send(behind + request("GET", "/v2/keys/half-watch/w?wait=true")).half_close()
        raw.rest()
    wait_until(lambda: watchers(client) == 0)


@pytest.mark.parametrize("way", ["close", "reset"])
def test_a_watch_ends_with_its_client(server, client, way):
    watches = [Raw(server.port) for _ in range(20)]
    for i, watch in enumerate(watches):
        stream = "&stream=true" if i % 2 else ""
        watch.send(request("GET", f"/v2/keys/left?wait=true{stream}"))
        assert watch.head().status == 200
    assert watchers(client) == 20
    for watch in watches:
        getattr(watch, way)()
    wait_until(lambda: watchers(client) == 0)


def test_a_stream_that_is_not_read_is_cut(fresh_server):
    client = fresh_server.client()
    value = "x" * (256 << 10)
    with Raw(fresh_server.port, receive_buffer=4096) as raw:
        raw.send(request("GET", "/v2/keys/flood?wait=true&stream=true"))
        assert raw.head().status == 200
        reader = fresh_server.watch("/flood", stream="true")
        before = resident_bytes(fresh_server)
        written = 0
        while written < 100:
            written += 1
            client.put("/flood", value)
            assert reader.event()["node"]["value"] == value
            if watchers(client) == 1:
                break
        assert watchers(client) == 1, "the reader alone is left"
        assert resident_bytes(fresh_server) - before < 64 << 20
        got = raw.rest()
        assert not got.endswith(b"0\r\n\r\n")
        assert len(got) < written * 2 * len(value)


def test_answers_that_are_not_read_are_not_piled_up(fresh_server):
    client = fresh_server.client()
    value = "x" * (256 << 10)
    client.put("/pile", value)
    before = resident_bytes(fresh_server)
    with Raw(fresh_server.port, receive_buffer=4096) as raw:
        sent = request("GET", "/v2/keys/pile") * 200
        raw.send(sent)
        for _ in range(20):
            assert client.get("/pile").status == 200
        assert resident_bytes(fresh_server) - before < 32 << 20
        for _ in range(200):
            assert raw.answer().json["node"]["value"] == value


def test_requests_that_are_not_answered_yet_are_not_piled_up(fresh_server):
    with Raw(fresh_server.port) as raw:
        raw.send(request("GET", "/v2/keys/w?wait=true"))
        assert raw.head().status == 200
        before = resident_bytes(fresh_server)
        flood = VERSION * 1_000_000
        assert raw.send_what_fits(flood, timeout_s=1) < len(flood)
        assert resident_bytes(fresh_server) - before < 16 << 20
        assert fresh_server.client().put("/w", 1).status == 201
        (event,) = raw.chunks()
        assert b'"action":"set"' in event
        assert raw.answer().body.startswith(b'{"etcdserver"')


# Large listings, which take many turns.


@pytest.fixture(scope="module")
def large(server: Server) -> str:
    """A directory of more keys than are rendered in one turn."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(Raw(server.port)) for _ in range(12)]
        for i in range(LARGE):
            key = f"/v2/keys/large-dir/{i:05}"
            writers[i % len(writers)].send(request("PUT", key, body=b"value=" + b"v" * 100))
        for i in range(LARGE):
            assert writers[i % len(writers)].answer().status == 201
    return "/v2/keys/large-dir"


def test_a_large_listing_is_whole_and_in_order(raw, large):
    answer = raw.ask("GET", f"{large}?sorted=true")
    keys = [child["key"] for child in answer.json["node"]["nodes"]]
    assert keys == [f"/large-dir/{i:05}" for i in range(LARGE)]
    assert raw.ask("GET", "/version").status == 200


def test_the_head_of_a_large_listing_has_no_length(raw, large):
    answer = raw.ask("HEAD", large)
    assert answer.status == 200
    assert not {"content-length", "transfer-encoding"} & answer.headers.keys()
    assert raw.ask("HEAD", f"{large}/00000").headers["content-length"] != "0"


def test_a_large_listing_shows_each_change(raw, large):
    def listed() -> dict[str, str]:
        answer = raw.ask("GET", large)
        assert raw.ask("GET", large).body == answer.body
        return {node["key"]: node["value"] for node in answer.json["node"]["nodes"]}

    before = listed()
    raw.ask("PUT", f"{large}/00007", body=b"value=other")
    raw.ask("PUT", f"{large}/new", body=b"value=new")
    changes = {"/large-dir/00007": "other", "/large-dir/new": "new"}
    assert listed() == before | changes
    raw.ask("DELETE", f"{large}/new")
    assert listed() == before | {"/large-dir/00007": "other"}


def test_others_are_served_while_large_listings_are_made(server, client, large):
    listings = [Raw(server.port) for _ in range(8)]
    for listing in listings:
        listing.send(request("GET", large))
    assert client.put("/meanwhile", 1).status in (200, 201)
    for listing in listings[:4]:
        listing.reset()
    for listing in listings[4:]:
        assert len(listing.answer().json["node"]["nodes"]) == LARGE
        listing.close()


def test_a_pipelined_large_listing_keeps_its_place(raw, large):
    raw.send(request("GET", large) + VERSION + request("GET", large) + VERSION)
    for _ in range(2):
        assert len(raw.answer().json["node"]["nodes"]) == LARGE
        assert raw.answer().body.startswith(b'{"etcdserver"')


# What comes before routing, and what routing says.


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v2/keys/a",
        "/v2/keys//a",
        "/nothing",
        "/version",
        "/v2/members",
        "*",
        "/v2/keys/../..",
    ],
)
def test_options_is_answered_anywhere(raw, target):
    answer = raw.ask("OPTIONS", target)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers.keys() == {"server", "date", "content-length"}
    assert answer.headers["content-length"] == "0"


REDIRECTS = [
    ("/v2/keys//hd", "/v2/keys/hd"),
    ("/v2/keys/./hd", "/v2/keys/hd"),
    ("/v2/keys/a/../hd?x=1", "/v2/keys/hd?x=1"),
    ("/v2/keys/..", "/v2"),
    ("/v2/keys/../stats/store", "/v2/stats/store"),
    ("//v2/keys/x", "/v2/keys/x"),
    ("//", "/"),
    ("/v2/keys/a//", "/v2/keys/a/"),
    ("/v2/keys/a%2F%2Fb", "/v2/keys/a/b"),
    ("/v2/keys/%2e%2e", "/v2"),
    ("//version", "/version"),
    ("/nothing//", "/nothing/"),
    ("http://h", "/"),
    ("http://h?x", "/?x"),
    ("/v2/keys//a?", "/v2/keys/a"),
    ("/v2/keys//a??b=%zz&c", "/v2/keys/a??b=%zz&c"),
    ("/v2/keys//a?x=\xff", "/v2/keys/a?x=%ff"),
    ("/v2/keys//\xff\"<>'#{}%20%3F%25", "/v2/keys/%FF%22%3C%3E%27%23%7B%7D%20%3F%25"),
]


@pytest.mark.parametrize(("target", "location"), REDIRECTS)
def test_a_path_that_is_not_clean_is_redirected(raw, target, location):
    answer = raw.ask("GET", target)
    assert answer.status == 301
    assert answer.headers["location"] == location
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "x-etcd-cluster-id" not in answer.headers
    if "%ff" not in location:
        shown = location.replace("&", "&amp;")
        assert answer.body.decode() == f'<a href="{shown}">Moved Permanently</a>.\n\n'
    for method in ("HEAD", "PUT", "POST", "DELETE", "BREW"):
        other = raw.ask(method, target)
        assert (other.status, other.body) == (301, b"")
        assert other.headers["location"] == location
        assert ("content-type" in other.headers) == (method == "HEAD")


def test_the_text_of_a_redirect_is_escaped_html(raw):
    answer = raw.ask("GET", "/v2/keys//a?x=\xff&\"<'>")
    assert answer.body == (
        b'<a href="/v2/keys/a?x=\xff&amp;&#34;&lt;&#39;&gt;">Moved Permanently</a>.\n\n'
    )


UNKNOWN = ["/", "/v2", "/v2/", "/v2/keysfoo", "/v2/stats", "/v2/stats/", "/v2/stats/store/",
           "/v2/machines/", "/version/", "/health/", "/v2/leader", "/v2/admin", "/v1/keys/x",
           "/members", "/v2/membersx", "/V2/keys", "/favicon.ico"]  # fmt: skip


@pytest.mark.parametrize("target", UNKNOWN)
def test_an_unknown_route_is_not_found(raw, target):
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "BREW", "get"):
        answer = raw.ask(method, target, body=b"" if method in ("PUT", "POST") else None)
        assert answer.status == 404
        assert answer.body == (b"" if method == "HEAD" else b"404 page not found\n")
        assert answer.headers["content-length"] == "19"
        assert answer.headers["content-type"] == TEXT
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "x-etcd-cluster-id" not in answer.headers


def test_an_unknown_route_of_v3_is_not_found_by_its_gateway(raw):
    assert raw.ask("GET", "/v3/none").body == b"Not Found\n"


ALLOWED = {
    "/v2/keys": "HEAD,GET,PUT,POST,DELETE",
    "/v2/keys/": "HEAD,GET,PUT,POST,DELETE",
    "/v2/keys/a/b": "HEAD,GET,PUT,POST,DELETE",
    "/v2/members": "GET,POST,DELETE,PUT",
    "/v2/members/": "GET,POST,DELETE,PUT",
    "/v2/members/abc": "GET,POST,DELETE,PUT",
    "/v2/machines": "GET,HEAD",
    "/v2/stats/store": "GET",
    "/v2/stats/self": "GET",
    "/v2/stats/leader": "GET",
    "/version": "GET",
    "/health": "GET",
}


@pytest.mark.parametrize("target", ALLOWED)
def test_other_methods_are_not_allowed(raw, target):
    methods = {"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "TRACE", "BREW", "get", "Put"}
    for method in sorted(methods - set(ALLOWED[target].split(","))):
        answer = raw.ask(method, target)
        assert answer.status == 405, method
        assert answer.headers["allow"] == ALLOWED[target]
        assert answer.headers["content-type"] == TEXT
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-length"] == "19"
        assert answer.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")
        assert "x-etcd-index" not in answer.headers


CORS = ["access-control-allow-methods", "access-control-allow-origin",
        "access-control-allow-headers"]  # fmt: skip
ANYWHERE = [
    request(method, target, "Origin: http://a:80")
    for method in ("GET", "OPTIONS")
    for target in ("/v2/keys/", "/v2/keys/none", "/v2/keys/?wait=x", "/version", "/x", "/v2//keys")
]


def test_cors_is_off_unless_asked_for(raw):
    for sent in ANYWHERE:
        assert not set(CORS) & raw.send(sent).answer().headers.keys()


def test_cors_for_everybody(make_server):
    server = make_server("--cors", "*").start()
    with Raw(server.port) as raw:
        for sent in [*ANYWHERE, *(sent.replace(b"Origin", b"X") for sent in ANYWHERE)]:
            headers = raw.send(sent).answer().headers
            assert [headers[name] for name in CORS] == [
                "POST, GET, OPTIONS, PUT, DELETE",
                "*",
                "accept, content-type, authorization",
            ]
        raw.send(request("GET", "/v2/keys/w?wait=true"))
        assert raw.head().headers["access-control-allow-origin"] == "*"


def test_cors_for_some(make_server):
    server = make_server("--cors", "http://a:80,https://b").start()
    with Raw(server.port) as raw:
        for sent in ANYWHERE:
            headers = raw.send(sent).answer().headers
            assert headers["access-control-allow-origin"] == "http://a:80"
            assert headers["vary"] == "Origin"
            for other in (b"http://a", b"http://c", b"HTTP://a:80", b"*", b"null"):
                answer = raw.send(sent.replace(b"http://a:80", other)).answer()
                assert not set(CORS) & answer.headers.keys()
                assert answer.headers["vary"] == "Origin"
            headers = raw.send(sent.replace(b"Origin", b"X")).answer().headers
            assert not set(CORS) & headers.keys()
            assert headers["vary"] == "Origin"


@pytest.fixture(scope="module")
def cors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from running(Server(tmp_path_factory.mktemp("data"), "--cors", "http://a:80"))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (request("GET", "/version", "Expect: something"), 417),
        (request("GET", "/version", f"X: {'x' * 70_000}"), 431),
        (request("GET", "/version", host="evil.example"), 421),
        (request("PUT", "/v2/keys/a", "Origin: http://c", body=b"value=1"), 403),
        (request("GET", f"/version?{'&' * 1000}"), 400),
        (request("PUT", "/v2/auth/roles/x", body=b"x" * (300 << 10)), 413),
    ],
    ids=["line", "host", "expect", "head", "foreign host", "page", "parameters", "body"],
)
def test_with_cors_what_http_refuses_varies_too(cors, sent, status):
    with Raw(cors.port) as raw:
        answer = raw.send(sent).answer()
        assert (answer.status, answer.headers["vary"]) == (status, "Origin")


# Anything at all.

SEEDS = [
    VERSION,
    request("GET", "/v2/keys/a?recursive=true&sorted=true"),
    request("PUT", "/v2/keys/a", body=b"value=1&ttl=100"),
    request("PUT", "/v2/keys/a", "Expect: 100-continue", body=b"value=1"),
    request("POST", "/v2/keys/q", body=b"value=%41"),
    request("DELETE", "/v2/keys/a?prevValue=1"),
    request("GET", "/v2/keys/a?wait=true&stream=true&waitIndex=2"),
    request("GET", "/v2/members/abc%20"),
    request("POST", "/v2/members", "Content-Type: multipart/form-data; boundary=b", body=b"--b"),
    request("GET", "http://h/v2//keys/%2e%2e?x"),
    request("HEAD", "/v2/stats/self", "Connection: keep-alive, close"),
    chunked("PUT", "/v2/keys/c", b"value=", b"1"),
    b"GET /v2/keys HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
]
PIECES = [b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b" ", b":", b"%", b"%zz", b"\xff", b"chunked",
          b"Transfer-Encoding: chunked\r\n", b"Content-Length: 1\r\n", b"Host: h\r\n", b"HTTP/1.1",
          b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: x\r\n", b"..", b"//",
          b"0\r\n\r\n", b";", b"&", b"=", b"GET ", b"Content-Type: ;\r\n", b"ffffffffffffff\r\n",
          b"Cookie: =;\xff\r\n", b"X-Forwarded-For: \xff\r\n", b"?", b"*", b"#"]  # fmt: skip


def mutated(dice: random.Random) -> bytes:
    sent = bytearray(b"".join(dice.choices(SEEDS, k=dice.randint(1, 3))))
    if dice.random() < 0.05:
        return dice.randbytes(dice.randint(1, 300))
    for _ in range(dice.randint(0, 6)):
        place = dice.randrange(len(sent) + 1)
        match dice.randrange(4):
            case 0:
                sent[place : place + dice.choice([0, 0, 1, 5])] = dice.choice(PIECES)
            case 1:
                sent[place : place + 1] = dice.randbytes(1)
            case 2:
                del sent[place : place + dice.randint(1, 8)]
            case _:
                sent[place:place] = sent[place : place + dice.randint(1, 40)]
    return bytes(sent)


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_are_answered_or_refused(server, seed):
    dice = random.Random(seed)
    for number in range(500):
        sent = mutated(dice)
        with Raw(server.port) as raw:
            try:
                cut = dice.randrange(len(sent) + 1)
                raw.send(sent[:cut], sent[cut:])
                raw.half_close()
            except OSError:
                continue  # refused and gone already
            # It ends: nothing that was sent keeps a connection open for ever.
            try:
                answered = raw.rest()
            except TimeoutError:
                pytest.fail(f"no end after {sent!r} (seed {seed}, number {number})")
            assert answered == b"" or answered.startswith(b"HTTP/1."), sent
    assert server.client().request("GET", "/health").json == {"health": "true"}


def test_a_large_listing_that_is_not_read_holds_nobody_up(make_server, tmp_path):
    bulk_load(tmp_path / "data", ((b"/d/%05d" % i, b"v" * 10_000) for i in range(LARGE)))
    server = make_server().start()
    with Raw(server.port, receive_buffer=4096) as lazy:
        lazy.send(request("GET", "/v2/keys/d"))
        assert lazy.head().status == 200
        assert server.client().get("/d/00000").status == 200
        assert server.terminate() == 0
