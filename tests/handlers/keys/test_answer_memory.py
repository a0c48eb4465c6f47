"""Memory of responses: counted before they are made, and no client keeps it from the others."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from http.client import HTTPException

import pytest

from kvd.http.receiving import Receiving
from kvd.http.sending.outbox import Outbox
from kvd.json_text import LargeValue, escape
from kvd.limits.memory_budget import MemoryBudget, Values
from tests.monitoring.test_metrics import scrape
from tests.support.lazy_readers import Upload, run
from tests.support.memory import MIB, peak_bytes, rejected
from tests.support.raw import Raw, request
from tests.support.server import FORM, Answer, Client, Server
from tests.support.waiting import wait_until

# A character that stands for itself in a form, and is six characters in JSON.
CONTROL = "\x01"


def held_bytes(client: Client) -> float:
    return scrape(client)["kvd_buffered_answer_bytes"]


def put_large(client: Client, key: str, value: str) -> None:
    # As it is: to encode it as a form takes longer than all else.
    body = f"noValueOnSuccess=true&value={value}".encode()
    answer = client.request("PUT", f"/v2/keys{key}", body, {"Content-Type": FORM})
    assert answer.status in (200, 201), answer


@contextlib.contextmanager
def lazy_clients(server: Server, requests: list[bytes]) -> Iterator[list[Raw]]:
    """Clients that ask and do not read."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Raw(server.port, receive_buffer=4096)) for _ in requests]
        for raw, asked in zip(made, requests, strict=True):
            raw.send(asked)
        yield made


def test_a_large_value_is_answered_as_it_is(fresh_server):
    client = fresh_server.client()
    for value in (CONTROL * 300_000, "\u2028é<" * 100_000, "plain" * 100_000):
        before = client.put("/v", "x" * 100_000).json["node"]
        put = client.put("/v", value).json
        assert put["node"]["value"] == value
        assert put["prevNode"] == before
        assert client.get("/v").json["node"] == put["node"]
        assert client.get("/").json["node"]["nodes"] == [put["node"]]
        head = client.request("HEAD", "/v2/keys/v")
        assert (head.status, head.body) == (200, b"")
        gone = client.delete("/v").json
        assert gone["prevNode"] == put["node"]
        watched = client.get("/v", wait="true", waitIndex=put["node"]["modifiedIndex"]).json
        assert watched == put


def test_bytes_that_are_no_text_are_escaped_across_slices(fresh_server):
    client = fresh_server.client()
    client.request("PUT", "/v2/keys/v", b"value=" + b"%F0%9F%98%80%FF%E2%82" * 20_000)
    shown = client.get("/v").json["node"]["value"]
    assert shown == "\U0001f600\ufffd\ufffd\ufffd" * 20_000


def test_http_1_0_gets_a_large_value_up_to_the_end_of_the_connection(fresh_server):
    client = fresh_server.client()
    put_large(client, "/v", CONTROL * 200_000)
    with Raw(fresh_server.port) as raw:
        raw.send(b"GET /v2/keys/v HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = raw.answer()
        assert "transfer-encoding" not in answer.headers
        assert json.loads(answer.body)["node"]["value"] == CONTROL * 200_000


def test_a_value_that_many_are_sent_is_held_once(make_server):
    server = make_server("--max-buffered-bytes", str(20 * MIB)).start()
    client = server.client()
    value = CONTROL * (3 * MIB)
    put_large(client, "/shared", value)
    # One by one would be 60 MiB, escaped 360.
    asked = [request("GET", "/v2/keys/shared")] * 10 + [request("GET", "/v2/keys/")] * 10
    with lazy_clients(server, asked) as lazy:
        heads = [raw.head() for raw in lazy]
        assert {head.status for head in heads} == {200}
        assert held_bytes(client) < 4 * MIB
        assert rejected(client, "answer_not_read") == 0
        shown = json.loads(b"".join(lazy[-1].chunks()))["node"]["nodes"]
        assert shown[0]["value"] == value


def test_a_response_is_escaped_as_it_is_sent():
    memory = MemoryBudget(MIB)
    values = Values(memory)
    raw = "\x01é\u2028".encode() * 20_000 + b"\xff"
    first, second = Outbox(), Outbox()
    kept = []
    for outbox in (first, second):
        pieces = values.pieces([b"[", LargeValue(7, raw), b"]"])
        kept += pieces
        for piece in pieces:
            outbox.add(piece)
    assert memory.answers == 2 * 2 + len(raw), "the value counts once, the rest twice"
    sent = b""
    while first:
        sent += b"".join(bytes(piece) for piece in first.slices())
    assert sent == b"[" + escape(raw) + b"]"
    second.clear()
    assert memory.answers == 0
    # Held by nobody, it is counted again, even if the object is still there.
    assert values.missing_bytes([LargeValue(7, raw)]) == len(raw)
    assert kept[1] is kept[4]


@pytest.mark.parametrize("replaced", [False, True], ids=["new", "replaced"])
def test_unread_answers_to_writes_take_no_more_than_the_limit(make_server, replaced):
    server = make_server("--max-buffered-bytes", str(16 * MIB), "--write-timeout-s", "600").start()
    client = server.client()
    put_large(client, "/warm", CONTROL * (2 * MIB))
    if replaced:
        for number in range(16):
            put_large(client, f"/k{number}", CONTROL * (2 * MIB))
    before = peak_bytes(server)
    body = b"value=" + (b"x" if replaced else CONTROL.encode() * (2 * MIB))
    asked = [request("PUT", f"/v2/keys/k{number}", body=body) for number in range(16)]
    with lazy_clients(server, asked):
        # Others are served, small answers at once, large ones once those are cut who do not read.
        assert client.put("/small", 1).status == 201
        wait_until(lambda: held_bytes(client) > 4 * MIB)

        def is_served() -> bool:
            with contextlib.suppress(OSError, HTTPException):
                return server.client().get("/warm").json["node"]["value"] == CONTROL * (2 * MIB)
            return False  # on a busy machine it may read more slowly than the others for once

        wait_until(is_served)
        most = 16 + 64
        assert peak_bytes(server) - before < most * MIB, "not 192"


def test_slow_requests_make_room_for_answers_that_wait():
    @run
    async def _() -> None:
        memory = MemoryBudget(16 * MIB)
        receiving = Receiving(memory, lambda: 0.0)
        slow = Upload(receiving, 6 * MIB)
        whole = Upload(receiving, 6 * MIB, is_receiving=False)
        memory.take(2 * MIB)
        receiving.tick(1.0)
        assert not slow.is_given_up, "nobody waits"
        waiting = asyncio.ensure_future(memory.room(6 * MIB))
        await asyncio.sleep(0)
        receiving.tick(2.0)
        receiving.tick(3.0)
        await waiting
        assert (slow.is_given_up, whole.is_given_up) == (True, False)


def test_large_requests_that_wait_exceed_the_limit_by_little():
    memory = MemoryBudget(16 * MIB)
    receiving = Receiving(memory, lambda: 0.0)
    made = []
    for _ in range(240):
        made.append(Upload(receiving, 65_000))
        made[-1].held_bytes += 65_000
        if not receiving.take(made[-1], 65_000):
            receiving.wait(made[-1])
        assert memory.requests <= 14 * MIB + 65_000


def test_slow_readers_keep_no_client_from_small_answers_nor_for_long_from_large_ones(make_server):
    flags = ("--max-buffered-bytes", str(12 * MIB), "--write-timeout-s", "600")
    server = make_server(*flags).start()
    client = server.client()
    put_large(client, "/small", "v" * 100_000)
    for number in range(3):
        put_large(client, f"/k{number}", "v" * (6 * MIB))
    asked = [request("GET", f"/v2/keys/k{number}") for number in range(3)]
    with lazy_clients(server, asked) as slow:
        stop = threading.Event()

        def trickle() -> None:
            while not stop.wait(0.02):
                for raw in slow:
                    with contextlib.suppress(OSError):
                        raw.read_some(1024)

        wait_until(lambda: held_bytes(client) > 6 * MIB)
        reading = threading.Thread(target=trickle)
        reading.start()
        try:
            assert client.get("/small").json["node"]["value"] == "v" * 100_000
            assert rejected(client, "answer_not_read") == 0, "it did not have to wait"
            put_large(client, "/last", "v" * (6 * MIB))
            assert client.get("/last").status == 200
        finally:
            stop.set()
            reading.join()
        assert rejected(client, "answer_not_read") > 0


def test_a_listing_is_bounded_and_says_what_to_do(make_server):
    flags = ("--max-buffered-bytes", str(16 * MIB), "--max-response-bytes", str(8 * MIB))
    server = make_server(*flags).start()
    client = server.client()
    deep = ("/abcdefghijkl" * 4000)[:50_000]
    put_large(client, f"/deep{deep}", "x")
    for number in range(9):
        put_large(client, f"/large/{number}", CONTROL * MIB)
    before = peak_bytes(server)
    for key, params in (("/deep", {"recursive": "true"}), ("/large", {"sorted": "true"})):
        refused = client.get(key, **params)
        assert (refused.status, refused.json["errorCode"]) == (500, 300)
        assert refused.json["cause"] == (
            f"the response is larger than {8 * MIB} bytes: list fewer keys at once, "
            "or raise --max-response-bytes"
        )
    assert rejected(client, "answer_too_large") == 2
    assert peak_bytes(server) - before < 24 * MIB, "not the 100 MiB of the first"
    # A HEAD needs no body.
    assert client.request("HEAD", "/v2/keys/large").status == 200
    for number in (7, 8):
        client.delete(f"/large/{number}")
    assert len(client.get("/large").json["node"]["nodes"]) == 7
    assert held_bytes(client) == 0


def test_many_large_listings_of_one_directory_are_one(make_server):
    server = make_server("--max-buffered-bytes", str(16 * MIB)).start()
    client = server.client()
    for number in range(20):
        put_large(client, f"/d/{number}", "v" * 300_000)
    before = peak_bytes(server)
    with lazy_clients(server, [request("GET", "/v2/keys/d")] * 30) as lazy:
        bodies = {raw.answer().body for raw in lazy}
    assert len(bodies) == 1
    assert len(json.loads(bodies.pop())["node"]["nodes"]) == 20
    assert peak_bytes(server) - before < 40 * MIB
    assert rejected(client, "answer_not_read") == 0


def test_large_listings_that_do_not_fit_side_by_side_all_get_their_turn(make_server):
    server = make_server("--max-buffered-bytes", str(12 * MIB)).start()
    client = server.client()
    for directory in range(6):
        for number in range(12):
            put_large(client, f"/d{directory}/{number}", "v" * 500_000)
    answers: list[Answer] = []

    def read(directory: int) -> None:
        answers.append(server.client().get(f"/d{directory}"))

    reading = [threading.Thread(target=read, args=[directory]) for directory in range(6)]
    for thread in reading:
        thread.start()
    for thread in reading:
        thread.join()
    assert [answer.status for answer in answers] == [200] * 6
    assert {len(answer.json["node"]["nodes"]) for answer in answers} == {12}
    assert held_bytes(client) == 0


def test_history_of_large_events_is_sent_as_far_as_memory_goes(make_server):
    server = make_server("--max-buffered-bytes", str(16 * MIB), "--write-timeout-s", "600").start()
    client = server.client()
    first = client.get("/none").index + 1
    for _ in range(5):
        put_large(client, "/w", CONTROL * (2 * MIB))
    before = peak_bytes(server)
    asked = [
        request("GET", f"/v2/keys/w?wait=true&stream=true&waitIndex={first + place % 5}")
        for place in range(20)
    ]
    with lazy_clients(server, asked) as lazy:
        assert {raw.head().status for raw in lazy} == {200}
        assert client.put("/other", 1).status == 201
        wait_until(lambda: held_bytes(client) > 4 * MIB)
        last = client.get("/w", wait="true", waitIndex=first + 4).json
        assert last["node"]["value"] == CONTROL * (2 * MIB)
        assert peak_bytes(server) - before < (16 + 64) * MIB, "not 240"
