"""The turns of the loop are shared out: nobody has them by having bytes in the socket."""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from types import SimpleNamespace

import pytest

from kvd.config.urls import ListenUrl
from kvd.http.connection import Connection
from kvd.http.parsing.request_parser import SHORT_LINE_BYTES, is_deep
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.limits.memory import Memory
from kvd.limits.turns import Lane, Turns
from kvd.net import tls_connection
from kvd.net.acceptor import Acceptor
from kvd.net.listeners import bind
from kvd.net.tls_connection import TlsListener
from tests.support.certs import Authority

LOOPS = ["asyncio", "uvloop"]
READ = b"GET /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n"
WRITE = b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\n\r\n"
OTHER = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"PUT /v2/keys/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def new_loop(name):
    if name == "uvloop":
        return pytest.importorskip("uvloop").new_event_loop()
    return asyncio.new_event_loop()


class Served(Delegate):
    """Answers at once, and counts what the present turn has cost, by kind."""

    def __init__(self, loop):
        self.loop = loop
        self.turn = 0
        self.log = []
        """The turn and the kind of each request, and of each piece of a body."""
        loop.call_soon(self._next)

    def _next(self):
        self.turn += 1
        self.loop.call_soon(self._next)

    def serve_whole(self, connection, request):
        line = request.partition(b"\r\n")[0]
        is_whole = request.find(b"\r\n\r\n") == len(request) - 4
        is_costly = len(line) > SHORT_LINE_BYTES and is_deep(line, len(line))
        if b"/v2/keys/" not in line or not is_whole or is_costly:
            return None
        self.log.append((self.turn, line.split()[0].decode(), id(connection)))
        return ANSWER

    def start_request(self, connection):
        return Other(self, connection)

    def in_one_turn(self, kind):
        counts = {}
        for turn, what, _ in self.log:
            if what == kind:
                counts[turn] = counts.get(turn, 0) + 1
        return max(counts.values())


class Other:
    """A request that is not served the short way."""

    def __init__(self, served, connection):
        self._served, self._connection = served, connection

    def headers_received(self, start_line, headers):
        self._kind = start_line.method if "/v2/keys/" in start_line.path else "other"

    def data_received(self, chunk):
        self._served.log.append((self._served.turn, "piece", len(chunk)))

    def finish(self):
        self._served.log.append((self._served.turn, self._kind, id(self._connection)))
        self._connection.respond(200, b"", b"")

    def on_connection_close(self):
        pass


class Running:
    """A server on a loop of its own, with clients in the same thread."""

    def __init__(self, loop, connect=None):
        self.loop = loop
        self.served = Served(loop)
        self.turns = Turns(loop)
        self.server = HttpServer(self.served, Limits(), loop, Memory(1 << 28), self.turns)
        self.connect = connect(self) if connect else lambda: Connection(self.server)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listening = loop.run_until_complete(
            loop.create_server(self.connect, sock=self.socket, backlog=256)
        )
        self.clients = []

    def client(self, sent):
        client = socket.create_connection(self.socket.getsockname())
        client.setblocking(False)
        self.clients.append(client)
        client.send(sent)
        return client

    def many(self, count, sent):
        """Clients in groups that fit the backlog."""
        made = []
        for _ in range(0, count, 100):
            made += [self.client(sent) for _ in range(100)]
            self.until(lambda: len(self.server.connections) == len(self.clients))
        return made

    def until(self, holds):
        async def wait():
            async with asyncio.timeout(60):
                while not holds():
                    for client in self.clients:
                        with contextlib.suppress(BlockingIOError):
                            client.recv(1 << 20)
                    await asyncio.sleep(0)

        self.loop.run_until_complete(wait())

    def close(self):
        while self.clients:
            self.clients.pop().close()
        self.listening.close()
        self.until(lambda: not self.server.connections)


@pytest.fixture(params=LOOPS)
def running(request):
    loop = new_loop(request.param)
    running = Running(loop)
    yield running
    running.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def asked(running, kind):
    return [entry for entry in running.served.log if entry[1] == kind]


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


class Secured(Running):
    """A server that speaks TLS; `begun` and `read` have the turn of each handshake and record."""

    def __init__(self, loop, pair):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        self.begun, self.read = [], []

        count = self._count

        class Counted(ssl.SSLObject):
            def read(self, *args):
                count()
                return super().read(*args)

        context.sslobject_class = Counted

        def current_context():
            self.begun.append(self.served.turn)
            return context

        def connect(running):
            tls = SimpleNamespace(
                current_context=current_context, config=SimpleNamespace(trusted_ca_file="")
            )
            url = ListenUrl("127.0.0.1", 1, scheme="https")
            listener = SimpleNamespace(urls=[url], speaks_plain=False)
            return TlsListener(tls, running.server, lambda: Connection(running.server), listener)

        super().__init__(loop, connect)

    def _count(self):
        self.read.append(self.served.turn)


@pytest.fixture(params=LOOPS)
def secured(request, tmp_path):
    pair = Authority(tmp_path / "authority").sign("server", "127.0.0.1")
    loop = new_loop(request.param)
    running = Secured(loop, pair)
    yield running
    running.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


class Half:
    """The client's side of TLS, without a socket."""

    def __init__(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing)

    def hello(self):
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self.outgoing.read()

    def shake(self, running):
        """Shake hands with a server; the client that has."""
        client = running.client(self.hello())
        running.clients.remove(client)

        def is_done():
            with contextlib.suppress(BlockingIOError):
                self.incoming.write(client.recv(1 << 16))
            with contextlib.suppress(ssl.SSLWantReadError):
                self.tls.do_handshake()
                return True
            return False

        running.until(is_done)
        client.send(self.outgoing.read())
        running.clients.append(client)
        return client

    def records(self, sent, size):
        """What is sent, in records that have so many bytes of it."""
        for start in range(0, len(sent), size):
            self.tls.write(sent[start : start + size])
        return self.outgoing.read()


@pytest.mark.parametrize("name", LOOPS)
def test_few_connections_are_made_in_a_turn(name):
    loop = new_loop(name)
    served = Served(loop)
    server = HttpServer(served, Limits(backlog=512), loop, Memory(1 << 28))
    made = []

    def connect():
        made.append(served.turn)
        return Connection(server)

    (listener,) = bind([ListenUrl("127.0.0.1", 0)])
    acceptor = Acceptor(listener, server, connect, None)
    loop.run_until_complete(acceptor.start("listening"))
    with contextlib.ExitStack() as stack:
        for _ in range(300):  # all of them wait before the first is accepted
            client = socket.create_connection(listener.socket.getsockname())
            stack.enter_context(contextlib.closing(client))

        async def until(holds):
            async with asyncio.timeout(60):
                while not holds():
                    await asyncio.sleep(0)

        loop.run_until_complete(until(lambda: len(made) == 300))
    turns = Counter(made)
    assert max(turns.values()) <= 64
    assert len(turns) <= 20, "nor so few that the last of them has to wait for most turns"
    acceptor.close()
    loop.run_until_complete(until(lambda: not server.connections))
    loop.close()


def test_handshakes_are_few_in_a_turn(secured):
    for hello in [Half().hello() for _ in range(12)]:
        secured.client(hello)
    secured.until(lambda: len(secured.begun) == 12)
    assert max(map(secured.begun.count, secured.begun)) <= 2


def test_the_oldest_of_many_handshakes_that_have_begun_is_given_up(secured, monkeypatch):
    monkeypatch.setattr(tls_connection, "_BEGUN_MAX", 8)
    clients = []
    for number in range(12):
        clients.append(secured.client(Half().hello()))
        secured.clients.clear()  # nothing is read there, nor found to be reset
        secured.until(lambda count=number + 1: len(secured.begun) == count)
    assert len(secured.server.shaking) == 8
    for _ in range(3):
        Half().shake(secured)
    secured.until(lambda: len(secured.server.connections) == 3)
    for client in clients:
        client.close()


def test_a_handshake_that_comes_byte_by_byte_takes_no_turns(secured):
    first, *rest = (bytes([byte]) for byte in Half().hello())
    slow = secured.client(first)
    for byte in rest[:-1]:
        slow.send(byte)
        secured.until(lambda turn=secured.served.turn: secured.served.turn > turn + 1)
        assert secured.turns._slow_left == 1
    assert secured.begun == []
    slow.send(rest[-1])
    secured.until(lambda: secured.begun)


def test_tiny_records_of_tls_leave_turns_to_others(secured):
    halves = [Half() for _ in range(16)]
    clients = [half.shake(secured) for half in halves]
    count = 40
    for half, client in zip(halves, clients, strict=True):
        client.send(half.records(READ * count, 1))
    secured.until(lambda: len(asked(secured, "GET")) == 16 * count)
    # So many come that a turn could decrypt all of them: 1,440 from each client.
    assert max(Counter(secured.read).values()) < 2000


class Stays:
    """One that waits for a turn."""

    gone = False

    def __init__(self, name, address="h"):
        self.name, self.address = name, address


def test_addresses_take_turns_at_what_is_slow():
    loop = asyncio.new_event_loop()
    turns = Turns(loop)
    visited = []

    class Visitor(Stays):
        def take_turn(self):
            assert turns.takes_slow()
            visited.append(self.name)

    many = [Visitor(n, "many") for n in range(50)]
    for one in [*many, *(Visitor("few", "few") for _ in range(2))]:
        turns.wait(one, Lane.SLOW)
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))
    assert visited[:5] == [0, "few", 1, "few", 2]
    # Who has gone delays nobody.
    for one in many[:40]:
        one.gone = True
    before = len(visited)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert visited[before] == 40


def test_a_lane_keeps_its_order():
    loop = asyncio.new_event_loop()
    turns = Turns(loop)
    visited = []

    class Visitor(Stays):
        def take_turn(self):
            turns.left -= 1
            visited.append(self.name)

    for number in range(100):
        turns.wait(Visitor(number), Lane.READS)
    turns.wait(Visitor("slow"), Lane.SLOW)
    turns.wait(Visitor("write"), Lane.WRITES)
    loop.run_until_complete(asyncio.sleep(0))
    assert visited[0] == "write"
    assert "slow" in visited
    for _ in range(10):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert [name for name in visited if isinstance(name, int)] == list(range(100))


def test_one_that_has_just_come_waits_neither_for_those_ahead_nor_for_many_writes():
    loop = asyncio.new_event_loop()
    turns = Turns(loop)
    visited = []

    class Visitor(Stays):
        def take_turn(self):
            turns.left -= 2
            visited.append(self.name)

    for lane in (Lane.AHEAD, Lane.WRITES, Lane.READS):
        for _ in range(100 if lane is not Lane.READS else 10):
            turns.wait(Visitor(lane), lane)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    # All in the first turn, and before anything that came behind others; which has a share, too.
    assert visited.count(Lane.READS) == 10
    assert visited.index(Lane.AHEAD) > len(visited) - 1 - visited[::-1].index(Lane.READS)
