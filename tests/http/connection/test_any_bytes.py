"""Any bytes at all are answered or refused."""

import random

import pytest

from kvd.storage.tools.bulk_load import bulk_load
from tests.support.connections import (
    LARGE,
    VERSION,
)
from tests.support.raw import Raw, chunked, request

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


def test_a_large_listing_that_is_not_read_delays_no_client(make_server, tmp_path):
    bulk_load(tmp_path / "data", ((b"/d/%05d" % i, b"v" * 10_000) for i in range(LARGE)))
    server = make_server().start()
    with Raw(server.port, receive_buffer=4096) as lazy:
        lazy.send(request("GET", "/v2/keys/d"))
        assert lazy.head().status == 200
        assert server.client().get("/d/00000").status == 200
        assert server.terminate() == 0
