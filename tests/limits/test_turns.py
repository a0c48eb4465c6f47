"""The turns of the loop are shared: bytes in a socket buffer give no precedence."""

import contextlib
import socket

import pytest

from tests.support.turned import CHUNKED, OTHER, READ, WRITE, asked


@pytest.mark.parametrize("connections", [1, 16, 64])
def test_pipelined_reads_leave_turns_to_others(running, connections):
    late = running.client(READ)
    running.until(lambda: asked(running, "GET"))
    (own,) = {entry[2] for entry in running.served.log}
    for _ in range(connections):
        running.client(READ * 200)
    running.until(lambda: len(asked(running, "GET")) > 10 * connections)
    running.served.log.clear()
    before = running.served.turn
    late.send(READ)
    running.until(lambda: any(entry[2] == own for entry in running.served.log))
    (turn,) = [entry[0] for entry in running.served.log if entry[2] == own]
    # It is read, and visited after one visit of each of the others.
    assert turn - before <= 4 + connections // 16
    assert running.served.in_one_turn("GET") <= 128


BEGUN = b"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\nX: "
BODY = b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"


@pytest.mark.parametrize("begun", [b"", BEGUN, BODY], ids=["first bytes", "heads", "bodies"])
def test_what_comes_byte_by_byte_does_not_hold_up_a_request_that_has_come(running, begun):
    late = running.client(READ)
    running.until(lambda: asked(running, "GET"))
    (own,) = {entry[2] for entry in running.served.log}
    dribbling = running.many(400, begun or READ)
    # Beside some that pipeline, so that each turn is used up.
    for _ in range(8):
        running.client(READ * 450)
    running.until(lambda: len(asked(running, "GET")) > 600)
    for client in dribbling:
        client.send(b"G")
    late.send(READ)
    running.served.log.clear()
    before = running.served.turn
    running.until(lambda: any(entry[2] == own for entry in running.served.log))
    (turn,) = [entry[0] for entry in running.served.log if entry[2] == own]
    assert turn - before <= 3


def test_pipelining_connections_are_served_by_turns(running):
    for _ in range(8):
        running.client(READ * 200)
    running.until(lambda: len(asked(running, "GET")) > 800)
    shares = {}
    for _, _, connection in running.served.log:
        shares[connection] = shares.get(connection, 0) + 1
    assert len(shares) == 8
    assert max(shares.values()) - min(shares.values()) <= 64


def test_pipelined_answers_keep_their_order_and_none_is_lost(running):
    client = running.client((READ + WRITE + OTHER) * 100)
    running.until(lambda: len(running.served.log) == 300)
    assert [kind for _, kind, _ in running.served.log] == ["GET", "PUT", "other"] * 100
    assert client in running.clients


def test_few_reads_go_before_a_batch_that_waits(running):
    for _ in range(64):
        running.client(READ * 50)
    running.until(lambda: len(asked(running, "GET")) > 64)
    running.turns.hurry()
    running.until(lambda: True)
    running.served.log.clear()
    running.until(lambda: len(asked(running, "GET")) > 400)
    assert running.served.in_one_turn("GET") <= 32
    running.turns.calm()
    running.served.log.clear()
    running.until(lambda: len(asked(running, "GET")) > 400)
    assert 32 < running.served.in_one_turn("GET") <= 64


def test_plain_reads_beside_a_batch_that_waits_are_bounded_too(running):
    for _ in range(100):
        running.client(READ)
    running.until(lambda: len(asked(running, "GET")) == 100)
    running.turns.hurry()
    running.served.log.clear()
    for client in running.clients:
        client.send(READ)
    running.until(lambda: len(asked(running, "GET")) == 100)
    assert running.served.in_one_turn("GET") <= 64  # two halves of a turn of the loop


def test_writes_go_before_reads_that_wait(running):
    writer = running.client(WRITE)
    running.until(lambda: asked(running, "PUT"))
    for _ in range(64):
        running.client(READ * 50)
    running.until(lambda: len(asked(running, "GET")) > 64)
    running.turns.hurry()
    running.served.log.clear()
    before = running.served.turn
    writer.send(WRITE)
    running.until(lambda: asked(running, "PUT"))
    assert asked(running, "PUT")[0][0] - before <= 3
    running.turns.calm()


def test_a_request_that_says_how_long_it_has_taken_leaves_the_turn_to_others(running):
    serve = running.served.serve_whole

    def serve_long(connection, *request):
        connection.spend(1.0)
        return serve(connection, *request)

    running.served.serve_whole = serve_long
    for _ in range(20):
        running.client(READ)
    running.until(lambda: len(asked(running, "GET")) == 20)
    assert running.served.in_one_turn("GET") <= 2  # two halves of a turn of the loop


def test_slow_requests_are_few_in_a_turn(running):
    reader = running.client(READ)
    running.until(lambda: asked(running, "GET"))
    for _ in range(32):
        running.client(OTHER * 10)
    running.until(lambda: len(asked(running, "other")) > 32)
    running.served.log.clear()
    reader.send(READ)
    running.until(lambda: asked(running, "GET"))
    assert len(asked(running, "other")) <= 4
    running.until(lambda: len(asked(running, "other")) > 100)
    assert running.served.in_one_turn("other") <= 2


LONG = b"".join(b"H%d: v\r\n" % n for n in range(600))


@pytest.mark.parametrize(
    "costly",
    [
        b"GET /v2/keys%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"/a" * 200),
        b"DELETE /v2/keys%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"/a" * 200),
        b"GET /v2/keys/%b?wait=true HTTP/1.1\r\nHost: h\r\n\r\n" % (b"%2fa" * 200),
        b"GET /v2/keys/%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"k" * 2000),
        READ[:-2] + LONG + b"\r\n",
    ],
    ids=["path", "write", "escaped", "long", "headers"],
)
def test_costly_heads_are_few_in_a_turn(running, costly):
    kind = costly.split()[0].decode()
    for _ in range(16):
        running.client(costly * 10)
    running.until(lambda: len(asked(running, kind)) > 100)
    assert running.served.in_one_turn(kind) <= 2


def test_a_long_query_is_not_costly(running):
    value = b"%7B" * 200
    running.client(b"GET /v2/keys/a?value=%b HTTP/1.1\r\nHost: h\r\n\r\n" % value * 100)
    running.until(lambda: len(asked(running, "GET")) == 100)
    assert running.served.in_one_turn("GET") > 2


def test_a_body_of_tiny_chunks_leaves_turns_to_others(running):
    running.client(CHUNKED + b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n")
    running.until(lambda: asked(running, "piece"))
    running.client(READ)
    running.until(lambda: asked(running, "GET"))
    assert not asked(running, "PUT")
    running.until(lambda: asked(running, "PUT"))
    assert sum(entry[2] for entry in asked(running, "piece")) == 10_000
    assert max(entry[2] for entry in asked(running, "piece")) <= 256


def test_a_client_that_half_closes_while_it_waits_gets_all_its_answers(running):
    client = running.client(READ * 300)
    client.shutdown(socket.SHUT_WR)
    got = b""

    def all_answered():
        nonlocal got
        with contextlib.suppress(BlockingIOError):
            got += client.recv(1 << 20)
        return got.count(b"HTTP/1.1 200 OK") == 300

    running.clients.remove(client)
    running.until(all_answered)
    client.close()
