"""Links between replicas: both sides know the secret, and nothing else gets in."""

import asyncio
import socket
import ssl
import struct

import cbor2
import pytest

from kvd.replicas import links
from kvd.replicas.links import HANDSHAKES_MAX, MAGIC, Hello, LinkError, Listener, dial
from tests.support.certs import Authority

SECRET = bytes(range(32))
LEADER = Hello(1, "0.1.0", 5)
FOLLOWER = Hello(2, "0.1.0", 6)


def linked(main, serve=None, *, secret=SECRET):
    """Run `main(listener, links)` beside a listener; links that it has served are put there."""

    async def bounded():
        served = asyncio.Queue()

        async def keep(link):
            served.put_nowait(link)
            await link._writer.wait_closed()

        listener = Listener(secret, LEADER, serve or keep)
        await listener.start("127.0.0.1", 0)
        try:
            async with asyncio.timeout(60):
                await main(listener, served)
        finally:
            await listener.stop()

    asyncio.run(bounded())


def test_both_sides_say_hello_and_send():
    async def main(listener, served):
        link = await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        other = await served.get()
        assert (link.peer, other.peer) == (LEADER, FOLLOWER)
        link.send("cmd", 5, [[b"r" * 16, [1, b"/a", b"1", None, True]]])
        link.send("applied", 7, 6)
        assert await other.receive() == ("cmd", [5, [[b"r" * 16, [1, b"/a", b"1", None, True]]]])
        assert await other.receive() == ("applied", [7, 6])
        other.send("no", 5, b"r" * 16, 9, [101, b"[1 != 2]", 7])
        assert await link.receive() == ("no", [5, b"r" * 16, 9, [101, b"[1 != 2]", 7]])
        link.close()
        with pytest.raises(LinkError):
            await other.receive()

    linked(main)


def test_a_large_command_passes():
    async def main(listener, served):
        link = await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        value = bytes(range(256)) * 40_000
        link.send("cmd", 5, [[b"r", value]])
        sending = asyncio.create_task(link.drain())
        assert (await (await served.get()).receive())[1][1] == [[b"r", value]]
        await sending
        link.close()

    linked(main)


def test_a_dialer_without_the_secret_gets_nothing():
    async def main(listener, served):
        with pytest.raises(LinkError, match="does not know the secret"):
            await dial("127.0.0.1", listener.port, bytes(32), FOLLOWER)
        assert served.empty()

    linked(main)


def test_a_listener_without_the_secret_gets_no_hello():
    async def main(listener, served):
        with pytest.raises(LinkError, match="does not know the secret"):
            await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        assert served.empty()

    linked(main, secret=bytes(32))


def test_a_proof_of_one_side_is_none_of_the_other():
    # A dialer that has the listener prove the nonces that it wants to be proved.
    async def main(listener, served):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(MAGIC + bytes(16))
        answer = await reader.readexactly(48)
        writer.write(answer[16:])
        assert await reader.read() == b""
        assert served.empty()
        writer.close()

    linked(main)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"", b"KVDLINK0" + bytes(16)])
def test_what_is_no_replica_is_closed(sent):
    async def main(listener, served):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    linked(main)


MALFORMED = {
    "no CBOR": b"\xff",
    "no array": cbor2.dumps({"hello": 1}),
    "an empty array": cbor2.dumps([]),
    "no name": cbor2.dumps([1, 2]),
    "an unknown name": cbor2.dumps(["reboot"]),
    "a field less": cbor2.dumps(["applied", 1]),
    "a field more": cbor2.dumps(["alive", 1]),
    "another type": cbor2.dumps(["applied", 1, "2"]),
    "a boolean for a number": cbor2.dumps(["applied", 1, True]),
    "deep": b"\x81" * 100_000,
    "a huge array": b"\x9b" + b"\x7f" * 8,
    "huge bytes": b"\x5b" + b"\x7f" * 8,
    "nothing": b"",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_message_ends_the_link(content):
    async def main(listener, served):
        link = await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        other = await served.get()
        link._writer.write(struct.pack(">I", len(content)) + content)
        with pytest.raises(LinkError):
            await other.receive()
        with pytest.raises(LinkError):
            await link.receive()

    linked(main)


def test_a_length_is_refused_before_its_bytes_come():
    async def main(listener, served):
        link = await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        other = await served.get()
        link._writer.write(b"\xff\xff\xff\xff")
        with pytest.raises(LinkError, match="4294967295 bytes"):
            await other.receive()
        link.close()

    linked(main)


def test_a_message_beyond_the_limit_is_not_sent(monkeypatch):
    monkeypatch.setattr(links, "MESSAGE_BYTES_MAX", 1000)

    async def main(listener, served):
        link = await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        with pytest.raises(LinkError, match="at most 1000"):
            link.send("piece", bytes(1000))
        link.send("applied", 1, 1)
        assert await (await served.get()).receive() == ("applied", [1, 1])
        link.close()

    linked(main)


def flood(link):
    for _ in range(1000):
        link.send("piece", bytes(1 << 16))


def test_a_peer_that_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(links, "UNREAD_BYTES_MAX", 1 << 20)

    async def main(listener, served):
        link = await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        await served.get()
        with pytest.raises(LinkError, match="does not read"):
            flood(link)

    linked(main)


def test_strangers_are_few_at_a_time_and_not_for_long(monkeypatch):
    monkeypatch.setattr(links, "HANDSHAKE_S", 0.3)

    async def main(listener, served):
        strangers = [socket.create_connection(("127.0.0.1", listener.port)) for _ in range(90)]
        while listener._handshakes < HANDSHAKES_MAX:
            await asyncio.sleep(0)
        assert listener._handshakes == HANDSHAKES_MAX
        while listener._handshakes:
            await asyncio.sleep(0.01)
        link = await dial("127.0.0.1", listener.port, SECRET, FOLLOWER)
        link.close()
        for stranger in strangers:
            stranger.close()

    linked(main)


def test_a_replica_that_is_not_there_is_named():
    async def main():
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(LinkError, match=f"no link to 127.0.0.1:{port}"):
            await dial("127.0.0.1", port, SECRET, FOLLOWER)

    asyncio.run(main())


def test_a_link_by_tls(tmp_path):
    authority = Authority(tmp_path)
    pair = authority.sign("h1", "127.0.0.1")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority.cert))
    server.load_cert_chain(pair.cert, pair.key)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(authority.cert))
    bare = ssl.create_default_context(cafile=str(authority.cert))
    client.load_cert_chain(pair.cert, pair.key)

    async def main():
        served = asyncio.Queue()

        async def keep(link):
            served.put_nowait(link)
            await link._writer.wait_closed()

        listener = Listener(SECRET, LEADER, keep)
        await listener.start("127.0.0.1", 0, tls=server)
        where = ("127.0.0.1", listener.port, SECRET, FOLLOWER)
        link = await dial(*where, tls=client)
        assert (await served.get()).peer == FOLLOWER
        for context in (None, bare):
            with pytest.raises(LinkError):
                await dial(*where, tls=context)
        link.close()
        await listener.stop()

    asyncio.run(main())
