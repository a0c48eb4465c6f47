"""Limits on memory: unfinished requests, unread answers, uploads."""

import contextlib
import select
import socket
import threading
import time

import pytest

from kvd.http.receiving import WAIT_S, Receiving
from kvd.http.sending.outbox import Outbox
from kvd.limits.memory_budget import MemoryBudget, Piece
from tests.monitoring.test_metrics import scrape
from tests.support.memory import (
    MIB,
    Most,
    Upload,
    anonymous_bytes,
    launch,
    rejected,
    resident_bytes,
    send_what_is_taken,
)
from tests.support.raw import Raw, request
from tests.support.server import FORM
from tests.support.waiting import wait_until


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_clients_that_never_read_take_no_more_than_the_limit(make_server, loop):
    server = make_server("--max-buffered-bytes", str(20 * MIB), launch=launch(loop)).start()
    client = server.client()
    value = "v" * (8 * MIB)
    for number in range(8):
        client.put(f"/large{number}", value, noValueOnSuccess="true")
    client.put("/other", value)
    with contextlib.ExitStack() as stack:
        most = stack.enter_context(Most(server))

        def ask_and_do_not_read(numbers: range) -> None:
            for number in numbers:
                lazy = stack.enter_context(Raw(server.port, receive_buffer=4096))
                lazy.send(request("GET", f"/v2/keys/large{number % 8}"))

        ask_and_do_not_read(range(4))
        wait_until(lambda: scrape(client)["kvd_buffered_answer_bytes"] >= 16 * MIB)
        # They are in the way of who does read, and so they are cut.
        assert client.get("/other").json["node"]["value"] == value
        assert rejected(client, "answer_not_read") > 0
        ask_and_do_not_read(range(4, 20))
        assert client.get("/none").status == 404
        assert most.bytes - most.before < 60 * MIB, "not what they asked for: 64 MiB and more"


def test_unfinished_requests_and_unread_answers_take_no_more_than_the_limit_together(make_server):
    flags = ("--max-buffered-bytes", str(64 * MIB), "--write-timeout-s", "600")
    server = make_server(*flags, "--body-timeout-s", "600").start()
    client = server.client()
    for number in range(10):
        client.put(f"/large{number}", "v" * (8 * MIB), noValueOnSuccess="true")
    with contextlib.ExitStack() as stack:
        most = stack.enter_context(Most(server))
        body = request("PUT", "/v2/keys/k", body=b"v" * (8 * MIB))[:-1]
        sending = []
        for _ in range(10):
            raw = stack.enter_context(Raw(server.port))
            sending.append(threading.Thread(target=send_what_is_taken, args=[raw, body]))
            sending[-1].start()
        for number in range(10):
            lazy = stack.enter_context(Raw(server.port, receive_buffer=4096))
            lazy.send(request("GET", f"/v2/keys/large{number}"))
        for thread in sending:
            thread.join()
        assert client.put("/small", 1).status == 201
        samples = scrape(client)
        held = samples["kvd_buffered_request_bytes"], samples["kvd_buffered_answer_bytes"]
        assert 30 * MIB < sum(held) <= 64 * MIB
        assert most.bytes - most.before < (64 + 32) * MIB


@pytest.mark.parametrize("character", [b"v", b"%01"], ids=["plain", "escaped"])
def test_large_writes_take_little_more_than_what_is_counted_and_give_it_back(
    make_server, character
):
    server = make_server("--max-buffered-bytes", str(64 * MIB)).start()
    client = server.client()
    body = b"value=" + character * (8 * MIB // len(character))
    write = request("PUT", "/v2/keys/k?noValueOnSuccess=true", body=body)
    with contextlib.ExitStack() as stack:
        most = stack.enter_context(Most(server))
        raws = [stack.enter_context(Raw(server.port)) for _ in range(12)]
        sending = [threading.Thread(target=send_what_is_taken, args=[raw, write]) for raw in raws]
        for thread in sending:
            thread.start()
        for thread in sending:
            thread.join()
        assert 201 in {raw.answer().status for raw in raws}
        assert most.bytes - most.before < (64 + 64) * MIB
    client.put("/k", "small")
    wait_until(lambda: anonymous_bytes(server) - most.before < 32 * MIB)


def test_a_client_that_reads_nothing_for_long_is_cut_and_one_that_reads_slowly_is_not(make_server):
    server = make_server("--write-timeout-s", "2").start()
    client = server.client()
    client.put("/large", "v" * (8 * MIB))
    with (
        Raw(server.port, receive_buffer=4096) as slow,
        Raw(server.port, receive_buffer=4096) as lazy,
    ):
        for raw in (slow, lazy):
            raw.send(request("GET", "/v2/keys/large")).head()
        read = 0
        while rejected(client, "answer_not_read") == 0:
            read += len(slow._file.read(64 << 10))
            time.sleep(0.1)
        assert rejected(client, "answer_not_read") == 1
        assert len(lazy.rest()) < 8 * MIB
        while read < 8 * MIB and (piece := slow._file.read(64 << 10)):
            read += len(piece)
        assert read > 8 * MIB - 64 * 1024


def test_unfinished_requests_take_no_more_than_the_limit(make_server):
    flags = ("--max-buffered-bytes", str(10 * MIB), "--body-timeout-s", "600")
    server = make_server(*flags).start()
    client = server.client()
    size = 4 * MIB
    head = "PUT /v2/keys/k HTTP/1.1\r\nHost: h\r\n"
    head += f"Content-Type: {FORM}\r\nContent-Length: {size}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(Raw(server.port)) for _ in range(2)]
        for raw in begun:
            raw.send(head.encode(), b"value=" + b"v" * (size - 7))
        # Small ones go on.
        assert client.put("/small", 1).status == 201
        # Those that send nothing more make room for the next; on a busy machine that one may come
        # slowly itself, and be given up.
        statuses = []

        def is_taken() -> bool:
            with Raw(server.port) as third:
                answer = third.send(head.encode(), b"value=" + b"v" * (size - 6)).answer()
            statuses.append(answer.status)
            return answer.status == 201

        wait_until(is_taken)
        given_up = [raw for raw in begun if select.select([raw._socket], [], [], 0)[0]]
        assert given_up
        for raw in given_up:
            refused = raw.answer()
            assert (refused.status, refused.headers["connection"]) == (503, "close")
            assert refused.body == b"503 Service Unavailable: too much is sent at once"
        assert rejected(client, "too_much_at_once") == len(given_up) + statuses.count(503)
        assert client.put("/k", "v" * size).status == 200


def test_small_requests_get_in_whatever_is_held(make_server):
    flags = ("--max-buffered-bytes", str(10 * MIB), "--body-timeout-s", "600")
    flags += ("--header-timeout-s", "600")
    server = make_server(*flags).start()
    client = server.client()
    with contextlib.ExitStack() as stack:
        # More than fits, in requests that are small as well: heads, and bodies.
        for number in range(260):
            raw = stack.enter_context(Raw(server.port))
            large = request("PUT", "/v2/keys/k", body=b"v" * 60_000)
            raw.send(large[:-1] if number % 2 else b"GET / HTTP/1.1\r\nX: " + b"x" * 60_000)
            assert client.put("/mine", number).status in (200, 201)
        assert scrape(client)["kvd_buffered_request_bytes"] <= 10 * MIB
        assert rejected(client, "too_much_at_once") > 0
    wait_until(lambda: scrape(client)["kvd_buffered_request_bytes"] == 0)


def test_the_slowest_request_is_given_up_while_others_wait():
    now = [0.0]
    memory = MemoryBudget(9 * MIB)
    receiving = Receiving(memory, lambda: now[0])
    log: list[tuple[str, str]] = []
    fast, slow, slower, waits = (
        Upload(receiving, log, name) for name in ("fast", "slow", "slower", "waits")
    )
    assert all(upload.take(2 * MIB) for upload in (fast, slow, slower))
    receiving.tick(1.0)
    assert (fast.take(MIB // 2), slow.take(MIB // 4), slower.take(MIB // 8)) == (True, True, True)
    assert not waits.take(MIB)
    receiving.wait(waits)
    receiving.tick(2.0)
    assert log == [("is given up", "slower"), ("goes on", "waits")]
    assert memory.requests == sum(upload.held_bytes for upload in (fast, slow, waits))


def test_the_last_to_wait_is_refused_when_no_client_is_slow():
    memory = MemoryBudget(8 * MIB)
    receiving = Receiving(memory, lambda: 0.0)
    log: list[tuple[str, str]] = []
    whole = Upload(receiving, log, "whole")
    whole.take(6 * MIB - MIB // 4)
    whole.is_receiving = False
    uploads = [Upload(receiving, log, str(number)) for number in range(8)]
    for upload in uploads:
        upload.take(MIB // 10)
        receiving.wait(upload)
    receiving.tick(WAIT_S)
    assert log == []
    receiving.tick(WAIT_S + 1)
    assert log == [("is given up", "7"), *(("goes on", str(number)) for number in range(7))]


def test_what_has_come_whole_is_not_given_up():
    memory = MemoryBudget(8 * MIB)
    receiving = Receiving(memory, lambda: 0.0)
    log: list[tuple[str, str]] = []
    whole, begun, small = (Upload(receiving, log, name) for name in ("whole", "begun", "small"))
    whole.take(6 * MIB)
    whole.is_receiving = False
    begun.take(2 * MIB)
    assert small.take(100)
    assert log == [("is given up", "begun")]


def test_unfinished_heads_take_no_more_than_the_limit(make_server):
    flags = ("--max-buffered-bytes", str(10 * MIB), "--max-header-bytes", str(MIB))
    flags += ("--header-timeout-s", "600")
    server = make_server(*flags).start()
    client = server.client()
    with contextlib.ExitStack() as stack:
        begun = [stack.enter_context(Raw(server.port)) for _ in range(12)]
        for raw in begun:
            raw.send_what_fits(b"GET / HTTP/1.1\r\nX: " + b"x" * (MIB - 100), timeout_s=1)
        wait_until(lambda: rejected(client, "too_much_at_once") >= 2)
        assert client.put("/small", 1).status == 201
    wait_until(lambda: scrape(client)["kvd_connections"] == 1)
    with Raw(server.port) as raw:
        answer = raw.ask("GET", "/version", "X: " + "x" * (MIB - 200))
        assert answer.status == 200


def test_a_refused_content_type_is_not_kept(fresh_server):
    """It was, until the collector of garbage came by: 300 KB of each."""
    head = "PUT /v2/keys/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nContent-Type: a/b"
    request = f"{head}{' ' * 60_000}x\r\n\r\n".encode()
    with Raw(fresh_server.port) as raw:
        before = resident_bytes(fresh_server)
        for _ in range(200):
            assert raw.send(request).answer().status == 400
    assert resident_bytes(fresh_server) < before + (10 << 20)


def test_what_a_crowd_of_connections_took_is_given_back(fresh_server):
    client = fresh_server.client()
    client.get("/none")
    before = anonymous_bytes(fresh_server)
    sent = request("GET", "/v2/keys/none", f"X: {'x' * 61_000}")
    for _ in range(400):
        with contextlib.closing(socket.create_connection(("127.0.0.1", fresh_server.port))) as one:
            one.sendall(sent)
    wait_until(lambda: scrape(client)["kvd_connections"] == 1)
    wait_until(lambda: anonymous_bytes(fresh_server) < before + (8 << 20))


def test_what_waits_behind_a_request_is_not_read(fresh_server):
    client = fresh_server.client()
    with contextlib.ExitStack() as stack:
        watching = [stack.enter_context(Raw(fresh_server.port)) for _ in range(20)]
        for raw in watching:
            raw.send(request("GET", "/v2/keys/w?wait=true")).head()
        before = resident_bytes(fresh_server)
        for raw in watching:
            raw.send_what_fits(request("GET", "/version") * 40_000, timeout_s=0.1)
        assert client.get("/none").status == 404
        assert resident_bytes(fresh_server) - before < 20 * MIB
        client.put("/w", 1)
        for raw in watching:
            list(raw.chunks())
            assert raw.answer().status == 200


def test_what_is_counted_is_let_go_again():
    memory = MemoryBudget(100)
    shared = Piece(b"x" * 60, memory)
    first, second = Outbox(), Outbox()
    first.add(shared)
    second.add(shared)
    assert memory.answers == 60
    assert b"".join(first.slices()) == b"x" * 60
    assert memory.answers == 60
    second.add(Piece(b"y" * 50, memory))
    assert not memory.has_room(1)
    assert second.unsent_bytes == 110
    second.clear()
    assert (memory.answers, second.unsent_bytes, bool(second)) == (0, 0, False)


def test_large_pieces_are_sent_in_slices():
    memory = MemoryBudget(MIB)
    outbox = Outbox()
    data = bytes(range(256)) * 4000
    outbox.add(Piece(data, memory))
    outbox.add(Piece(b"end", memory))
    sent = b""
    while outbox:
        visit = [bytes(piece) for piece in outbox.slices()]
        assert sum(map(len, visit)) <= 300 << 10
        sent += b"".join(visit)
    assert sent == data + b"end"
    assert memory.answers == 0
