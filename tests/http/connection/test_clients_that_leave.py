"""Clients that close, reset or do not read their connections."""

import pytest

from tests.support.connections import (
    VERSION,
    resident_bytes,
    watchers,
)
from tests.support.raw import Raw, chunked, request
from tests.support.waiting import wait_until


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
