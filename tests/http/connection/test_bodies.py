"""Bodies with a length and in chunks, and requests that are smuggled in them."""

import pytest

from tests.support.connections import (
    EVIL,
    VERSION,
    assert_refused,
)
from tests.support.raw import chunked, request
from tests.support.server import FORM


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
