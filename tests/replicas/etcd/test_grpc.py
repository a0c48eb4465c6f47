"""Calls of gRPC: how they end, and what becomes of their connection."""

import asyncio
import contextlib
import struct

import pytest

from kvd.replicas.etcd import grpc
from kvd.replicas.etcd.grpc import Channel
from kvd.replicas.etcd.grpc_stream import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    OK,
    STREAM_WINDOW,
    UNAVAILABLE,
    UNKNOWN,
    GrpcError,
)
from tests.support.grpc_server import HEADERS, Answering

LONG_S = 60.0


@contextlib.asynccontextmanager
async def connected(answer, connections=None):
    """A channel to a server that answers so."""
    made = [] if connections is None else connections

    def accept():
        made.append(Answering(answer))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    channel = await Channel.connect(
        "127.0.0.1", server.sockets[0].getsockname()[1], timeout_s=LONG_S
    )
    try:
        yield channel
    finally:
        channel.close()
        server.close()
        for connection in made:
            connection.transport.abort()
            await connection.lost.wait()
        await server.wait_closed()


def call(answer, *, timeout_s=LONG_S):
    """What a unary call of b"question" returns, and whether its connection is open after it."""

    async def main():
        async with connected(answer) as channel:
            try:
                response = await channel.unary("/a/B", b"question", timeout_s=timeout_s)
            except GrpcError as error:
                return (error.code, error.message), channel.is_open
            return response, channel.is_open

    return asyncio.run(main())


def test_a_call_has_the_form_of_grpc():
    seen = {}

    def answer(server, number, path, body):
        seen.update(server.headers[number], body=body)
        server.message(number, b"answer " + path.encode())
        server.end(number)

    assert call(answer, timeout_s=1.5 * LONG_S) == (b"answer /a/B", True)
    assert seen["body"] == b"\0\0\0\0\x08question"
    assert (seen[":method"], seen[":scheme"], seen["te"]) == ("POST", "http", "trailers")
    assert seen["content-type"] == "application/grpc"
    assert seen["grpc-timeout"] == "90000m"


def test_a_call_has_it_on_uvloop_too():
    uvloop = pytest.importorskip("uvloop")

    def answer(server, number, path, body):
        server.message(number, body)
        server.end(number)

    async def main():
        async with connected(answer) as channel:
            return await channel.unary("/a/B", b"question", timeout_s=LONG_S)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == b"\0\0\0\0\x08question"


def test_a_status_comes_with_its_text():
    def answer(server, number, path, body):
        server.http.send_headers(number, HEADERS)
        server.end(number, "5", "no %22such%22 thing")

    assert call(answer) == ((5, 'no "such" thing'), True)


def test_a_status_may_come_alone():
    def answer(server, number, path, body):
        server.http.send_headers(
            number, [*HEADERS, ("grpc-status", "8"), ("grpc-message", "full")], end_stream=True
        )

    assert call(answer) == ((8, "full"), True)


@pytest.mark.parametrize(
    ("status", "code"), [("404", UNKNOWN), ("503", UNAVAILABLE), ("200", UNKNOWN)]
)
def test_what_is_no_grpc_is_named(status, code):
    def answer(server, number, path, body):
        server.http.send_headers(
            number, [(":status", status), ("content-type", "text/html")], end_stream=True
        )

    (found, text), _ = call(answer)
    assert found == code
    assert f"answers with status {status}: is it an etcd?" in text


def test_a_success_without_a_message_is_an_error():
    def answer(server, number, path, body):
        server.http.send_headers(number, HEADERS)
        server.end(number)

    assert call(answer)[0][0] == INTERNAL


def test_a_compressed_message_is_refused():
    def answer(server, number, path, body):
        server.http.send_headers(number, HEADERS)
        server.http.send_data(number, struct.pack(">BI", 1, 1) + b"x")

    assert call(answer) == ((INTERNAL, "a message of 1 bytes, compressed"), True)


def test_a_message_beyond_all_sizes_is_refused_by_its_length():
    def answer(server, number, path, body):
        server.http.send_headers(number, HEADERS)
        server.http.send_data(number, struct.pack(">BI", 0, 2**32 - 1))

    assert call(answer)[0][0] == INTERNAL


def test_a_reset_ends_the_call_alone():
    def answer(server, number, path, body):
        server.http.reset_stream(number)

    (code, _), is_open = call(answer)
    assert (code, is_open) == (UNAVAILABLE, True)


def test_goaway_ends_the_connection():
    def answer(server, number, path, body):
        server.http.close_connection(11, b"too_many_pings")

    (code, text), is_open = call(answer)
    assert (code, is_open) == (UNAVAILABLE, False)
    assert "too_many_pings" in text


def test_a_lost_connection_ends_the_call():
    def answer(server, number, path, body):
        server.transport.abort()

    (code, _), is_open = call(answer)
    assert (code, is_open) == (UNAVAILABLE, False)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(18)], ids=["HTTP/1.1", "zeros"]
)
def test_a_peer_of_another_protocol_is_named(said):
    async def main():
        writers = []

        def answer(_, writer):
            writers.append(writer)
            writer.write(said)

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        channel = await Channel.connect("127.0.0.1", port, timeout_s=LONG_S)
        with pytest.raises(GrpcError) as ended:
            await channel.unary("/a/B", b"question", timeout_s=LONG_S)
        assert (ended.value.code, channel.is_open) == (UNAVAILABLE, False)
        assert "does not speak HTTP/2" in ended.value.message
        server.close()
        writers[0].transport.abort()
        with contextlib.suppress(OSError):
            await writers[0].wait_closed()
        await server.wait_closed()

    asyncio.run(main())


def test_a_late_call_on_a_living_connection_ends_alone():
    def answer(server, number, path, body):
        server.http.ping(b"12345678")

    (code, _), is_open = call(answer, timeout_s=0.2)
    assert (code, is_open) == (DEADLINE_EXCEEDED, True)


def test_a_late_call_is_reset_at_the_server():
    async def main():
        servers = []
        async with connected(lambda server, *_: server.http.ping(bytes(8)), servers) as channel:
            with pytest.raises(GrpcError):
                await channel.unary("/a/B", b"", timeout_s=0.2)
            while not servers[0].resets:
                await asyncio.sleep(0)
            assert servers[0].resets == [1]

    asyncio.run(main())


def test_silence_since_a_call_began_ends_the_connection():
    def answer(server, number, path, body):
        if number == 3:
            server.message(number, b"")
            server.end(number)

    async def main():
        async with connected(answer) as channel:
            stream = channel.stream("/a/B")
            await channel.unary("/a/B", b"", timeout_s=LONG_S)
            # The server has acknowledged all settings, too.
            with pytest.raises(GrpcError) as late:
                await channel.unary("/a/B", b"", timeout_s=0.2)
            assert (late.value.code, channel.is_open) == (DEADLINE_EXCEEDED, False)
            with pytest.raises(GrpcError) as ended:
                await stream.receive()
            assert ended.value.code == UNAVAILABLE

    asyncio.run(main())


def test_what_was_never_sent_is_reported_so():
    async def main():
        async with connected(lambda *_: None) as channel:
            channel.close()
            with pytest.raises(GrpcError) as closed:
                await channel.unary("/a/B", b"", timeout_s=LONG_S)
            assert not closed.value.was_sent
            host, port = channel.peer.split(":")
        with pytest.raises(GrpcError) as refused:
            await Channel.connect(host, int(port), timeout_s=LONG_S)
        assert (refused.value.code, refused.value.was_sent) == (UNAVAILABLE, False)

    asyncio.run(main())


def test_closing_ends_what_waits():
    async def main():
        async with connected(lambda *_: None) as channel:
            waiting = asyncio.create_task(channel.unary("/a/B", b"", timeout_s=LONG_S))
            await asyncio.sleep(0)
            channel.close()
            with pytest.raises(GrpcError) as closed:
                await waiting
            assert closed.value.code == CANCELLED

    asyncio.run(main())


def test_a_stream_gives_its_messages_and_then_its_end():
    def answer(server, number, path, body):
        for message in (b"one", b"", b"three"):
            server.message(number, message, begins=message == b"one")
        server.end(number)

    async def main():
        async with connected(answer) as channel:
            stream = channel.stream("/a/B")
            stream.send(b"", ends=True)
            assert [await stream.receive() for _ in range(3)] == [b"one", b"", b"three"]
            for _ in range(2):
                with pytest.raises(GrpcError) as end:
                    await stream.receive()
                assert end.value.code == OK

    asyncio.run(main())


def test_a_cancelled_receive_loses_nothing():
    numbers = []

    async def main():
        servers = []
        async with connected(lambda server, number, *_: numbers.append(number), servers) as channel:
            stream = channel.stream("/a/B")
            stream.send(b"", ends=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await stream.receive()
            while not numbers:
                await asyncio.sleep(0)
            servers[0].message(numbers[0], b"one")
            assert await stream.receive() == b"one"

    asyncio.run(main())


def test_a_stream_that_is_not_read_holds_its_peer_back():
    piece = bytes(16_000)
    sent = []

    def answer(server, number, path, body):
        server.http.send_headers(number, HEADERS)
        fill(server, number)

    def fill(server, number):
        while server.http.local_flow_control_window(number) > 2 * len(piece):
            server.message(number, piece, begins=False)
            sent.append(len(piece))

    async def main():
        servers = []
        async with connected(answer, servers) as channel:
            stream = channel.stream("/a/B")
            stream.send(b"", ends=True)
            count = 0
            # All that the windows hold, several times.
            while sum(sent) < 4 * STREAM_WINDOW:
                await stream.receive()
                count += 1
                if servers:
                    fill(servers[0], 1)
            assert sum(sent) - count * len(piece) <= 3 * STREAM_WINDOW
            while count < len(sent):
                await stream.receive()
                count += 1

    asyncio.run(main())


def test_a_ping_that_is_answered_keeps_a_silent_stream(monkeypatch):
    monkeypatch.setattr(grpc, "PING_AFTER_S", 0.01)
    monkeypatch.setattr(grpc, "LOOK_S", 0.01)

    async def main():
        servers = []
        async with connected(lambda *_: None, servers) as channel:
            stream = channel.stream("/a/B")
            stream.send(b"", ends=True)
            while not servers or servers[0].pings < 5:
                await asyncio.sleep(0.001)
            servers[0].message(1, b"still here")
            assert await stream.receive() == b"still here"

    asyncio.run(main())


def test_a_ping_that_is_not_answered_ends_the_connection(monkeypatch):
    monkeypatch.setattr(grpc, "PING_AFTER_S", 0.01)
    monkeypatch.setattr(grpc, "LOOK_S", 0.01)

    async def main():
        def answer(server, *_):
            server.answers_pings = False

        async with connected(answer) as channel:
            stream = channel.stream("/a/B")
            stream.send(b"", ends=True)
            with pytest.raises(GrpcError) as end:
                await stream.receive()
            assert end.value.code == UNAVAILABLE
            assert "does not answer a ping" in end.value.message
            assert not channel.is_open

    asyncio.run(main())


def test_nothing_is_pinged_without_a_call(monkeypatch):
    monkeypatch.setattr(grpc, "PING_AFTER_S", 0.01)
    monkeypatch.setattr(grpc, "LOOK_S", 0.01)

    def answer(server, number, path, body):
        server.message(number, b"")
        server.end(number)

    async def main():
        servers = []
        async with connected(answer, servers) as channel:
            await asyncio.sleep(0.1)
            pings = servers[0].pings
            await channel.unary("/a/B", b"", timeout_s=LONG_S)
            assert pings == 0

    asyncio.run(main())


def test_an_old_connection_takes_no_more_calls(monkeypatch):
    monkeypatch.setattr(grpc, "LAST_STREAM_ID", 3)

    def answer(server, number, path, body):
        server.message(number, b"")
        server.end(number)

    async def main():
        async with connected(answer) as channel:
            for _ in range(2):
                await channel.unary("/a/B", b"", timeout_s=LONG_S)
            assert not channel.is_open

    asyncio.run(main())
