"""One layer of kvd at a time, in this process: when a request gets slower, this tells where.

The layers in the order in which a request passes them, each with what it is given on the hot path:
a key two directories deep, a value of 100 bytes, the header block of an ordinary client.
"""

from __future__ import annotations

from itertools import count
from math import inf
from typing import TYPE_CHECKING, cast

import pytest
from tornado import httputil

from bench.load.wire import render
from kvd.handlers.keys.listing import advance
from kvd.handlers.keys.listing import render as render_listing
from kvd.http.connection import Connection
from kvd.http.parsing.headers import parse_block
from kvd.http.server import Delegate, HttpServer, Limits
from kvd.limits.memory_budget import MemoryBudget
from kvd.storage.format.event import Event
from kvd.storage.format.frame import encode_frame
from kvd.storage.format.frame import parse as parse_frame
from kvd.storage.format.node import Node, decode_node, encode_key, encode_node
from kvd.storage.format.payload import encode_payload, next_chain
from kvd.storage.format.records import Change, Kind, encode_record
from kvd.storage.store import Store
from kvd.v2.commands import Command, CompareAndSwap, CreateInOrder, Set
from kvd.v2.request import parse
from kvd.v2.response import event_body, get_parts
from kvd.v2.rules import decide

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

KEY = b"/services/web/a"
VALUE = b"x" * 100
NOW_NS = 1_700_000_000_000_000_000
CHILDREN = 1000
BATCH = 64

CHANGE = Change(Kind.SET, 1000, KEY, VALUE, False, 1000)
NODE = Node(VALUE, 900, 1000)
EVENT = Event(CHANGE, NODE, NOW_NS)

COMMANDS: dict[str, Command] = {
    "set": Set(KEY, VALUE),
    "compare-and-swap": CompareAndSwap(KEY, VALUE, VALUE, 0),
    "in-order POST": CreateInOrder(b"/services/web", VALUE),
    "set with a TTL": Set(KEY, VALUE, False, 60),
}


ANSWER = b"HTTP/1.1 200 OK\r\nX-Etcd-Index: 1\r\nContent-Length: %d\r\n\r\n%b" % (len(VALUE), VALUE)


class Echo(Delegate[Connection], httputil.HTTPMessageDelegate):
    """Answers every request with the same few bytes: what is left is HTTP's own part."""

    def __init__(self, *, is_short: bool) -> None:
        self.is_short = is_short

    def serve_whole(self, connection: Connection, request: bytes) -> bytes | None:
        """Answer on the short way, or decline it."""
        return ANSWER if self.is_short else None

    def start_request(self, connection: Connection) -> httputil.HTTPMessageDelegate:
        """Take a request through Tornado's interface."""
        self.connection = connection
        return self

    def finish(self) -> None:
        """Answer it."""
        self.connection.respond(200, b"X-Etcd-Index: 1\r\n", VALUE)


class Wire:
    """The transport of one connection: takes what is sent, and forgets it."""

    sent = 0

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Return the client's address; there is nothing else to know."""
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, _high: int) -> None:
        """Nothing is buffered."""

    def is_closing(self) -> bool:
        """It never does."""
        return False

    def write(self, data: bytes) -> None:
        """Count what is sent."""
        self.sent += len(data)


class Clock:
    """The part of an event loop that a connection uses outside of its timeouts."""

    def time(self) -> float:
        """The time does not go on."""
        return 0.0


@pytest.mark.benchmark(group="1 HTTP: bytes to a request, to the bytes of its answer")
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("way", ["short", "tornado"])
def test_http(benchmark: BenchmarkFixture, method: str, way: str) -> None:
    """A connection with nothing behind it, its header block met before."""
    loop = cast("asyncio.AbstractEventLoop", Clock())
    connection, wire = (
        Connection(
            HttpServer(Echo(is_short=way == "short"), Limits(), loop, MemoryBudget(1 << 20))
        ),
        Wire(),
    )
    connection.connection_made(cast("asyncio.Transport", wire))
    body = b"value=" + VALUE if method == "PUT" else b""
    request = render(method, "/v2/keys" + KEY.decode(), body)

    def serve() -> None:
        connection.get_buffer(-1)[: len(request)] = request
        connection.buffer_updated(len(request))

    benchmark(serve)
    assert wire.sent > len(VALUE)


@pytest.mark.benchmark(group="1 HTTP: a header block not met before")
def test_header_block(benchmark: BenchmarkFixture) -> None:
    """The result of llhttp."""
    _, _, head = render("PUT", "/v2/keys/a", VALUE).partition(b"\r\n")
    block = head.partition(b"\r\n\r\n")[0] + b"\r\n"
    assert benchmark(parse_block, block).content_length == len(VALUE)


@pytest.mark.benchmark(group="2 parameters to a command")
@pytest.mark.parametrize(
    ("method", "form"),
    [
        ("GET", b""),
        ("PUT", b"value=" + VALUE),
        ("PUT", b"value=%2Fusr%2Fbin+x&ttl=60"),
        ("PUT", b"prevValue=a&value=b"),
        ("PUT", b"ttl=60&refresh=true&prevExist=true"),
    ],
    ids=["GET", "PUT", "PUT, escapes and a TTL", "compare-and-swap", "refresh"],
)
def test_parameters(benchmark: BenchmarkFixture, method: str, form: bytes) -> None:
    """A form, checked."""
    benchmark(parse, method, KEY, b"", form)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with one directory of many keys."""
    opened = Store.open(tmp_path / "data")
    write(opened, [Set(KEY, VALUE)] + [Set(b"/list/%04d" % n, VALUE) for n in range(CHILDREN)])
    yield opened
    opened.close()


def write(store: Store, commands: list[Command]) -> None:
    """Do what the committer does with a batch, and wait for the disk."""
    txn = store.begin()
    records = []
    for command in commands:
        change = decide(txn, command, txn.index + 1, NOW_NS)
        records.append(encode_record(change))
        txn.apply(change, NOW_NS, records[-1])
    store.journal.encode(txn, records, NOW_NS)
    store.state.merge(txn, store.journal.append(txn))


@pytest.mark.benchmark(group="3 a command to a change")
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_decide(benchmark: BenchmarkFixture, store: Store, command: Command) -> None:
    """The rules, on the state in LMDB."""
    txn = store.begin()
    benchmark(decide, txn, command, 5000, NOW_NS)
    txn.end()


@pytest.mark.benchmark(group="4 a change to its record")
def test_encode_record(benchmark: BenchmarkFixture) -> None:
    """CBOR of one change."""
    benchmark(encode_record, CHANGE)


@pytest.mark.benchmark(group="4 a change to its rows")
@pytest.mark.parametrize("batch", [1, BATCH])
def test_apply(benchmark: BenchmarkFixture, store: Store, batch: int) -> None:
    """A batch applied in an LMDB transaction, with its history, and given up again."""
    benchmark.extra_info["changes"] = batch
    record = encode_record(CHANGE)

    def apply() -> None:
        txn = store.begin()
        for _ in range(batch):
            change = CHANGE._replace(index=txn.index + 1)
            txn.apply(change, NOW_NS, record)
        txn.end()

    benchmark(apply)


@pytest.mark.benchmark(group="5 records to a frame")
@pytest.mark.parametrize("batch", [1, BATCH])
def test_frame(benchmark: BenchmarkFixture, batch: int) -> None:
    """Payload, chain and frame of a batch."""
    benchmark.extra_info["records"] = batch
    records = [encode_record(CHANGE)] * batch

    def encode() -> bytes:
        payload = encode_payload(
            term=2, seq=7, prev_chain=bytes(8), pos=9, first_index=8, time_ns=NOW_NS,
            writer=1 << 60, records=records,
        )  # fmt: skip
        next_chain(bytes(8), payload)
        return encode_frame(payload, seq=7, first_index=8, count=batch, flags=0, chain=1, salt=2)

    encoded = benchmark(encode)
    assert parse_frame(encoded, 0, 2).seq == 7


@pytest.mark.benchmark(group="5 a frame, read back")
def test_read_frame(benchmark: BenchmarkFixture) -> None:
    """As recovery does."""
    payload = b"".join([encode_record(CHANGE)] * BATCH)
    encoded = encode_frame(payload, seq=7, first_index=8, count=BATCH, flags=0, chain=1, salt=2)
    assert benchmark(parse_frame, encoded, 0, 2).payload == payload


@pytest.mark.benchmark(group="6 a batch, from commands to visible")
@pytest.mark.parametrize("batch", [1, BATCH])
def test_write(benchmark: BenchmarkFixture, store: Store, batch: int) -> None:
    """All layers of the engine, the disk included."""
    benchmark.extra_info["commands"] = batch
    numbers = count()

    def run() -> None:
        write(store, [Set(KEY, VALUE + b"%d" % next(numbers)) for _ in range(batch)])

    benchmark(run)
    node = store.view.find(KEY)
    assert node is not None
    assert node.value == VALUE + b"%d" % (next(numbers) - 1)


@pytest.mark.benchmark(group="7 a node's row")
def test_encode_node(benchmark: BenchmarkFixture) -> None:
    """A node to its row."""
    benchmark(encode_node, encode_key(2, b"a"), b"a", NODE)


@pytest.mark.benchmark(group="7 a node's row, read back")
def test_decode_node(benchmark: BenchmarkFixture) -> None:
    """A row to its node, checked."""
    key = encode_key(2, b"a")
    assert benchmark(decode_node, key, encode_node(key, b"a", NODE)) == NODE


@pytest.mark.benchmark(group="7 a key, found")
def test_find(benchmark: BenchmarkFixture, store: Store) -> None:
    """A path to its node, in the committed state."""
    found = benchmark(store.view.find, KEY)
    assert found.value == VALUE


@pytest.mark.benchmark(group="8 an answer's JSON")
def test_render_event(benchmark: BenchmarkFixture) -> None:
    """The answer to an overwrite, and the events for its watchers."""
    benchmark(event_body, EVENT)


@pytest.mark.benchmark(group="8 an answer's JSON")
@pytest.mark.parametrize("node", [NODE, NODE._replace(expiration_ns=NOW_NS)], ids=["key", "TTL"])
def test_render_get(benchmark: BenchmarkFixture, node: Node) -> None:
    """The answer to a read."""
    benchmark(get_parts, KEY, node, NOW_NS)


@pytest.mark.benchmark(group=f"8 a listing of {CHILDREN} keys")
def test_render_listing(benchmark: BenchmarkFixture, store: Store) -> None:
    """All children of a directory, read and rendered."""
    directory = store.view.find(b"/list")
    assert directory is not None

    def render_all() -> int:
        slices = render_listing(store.view, b"/list", directory, NOW_NS, recursive=False)
        (body,), _ = advance(slices, until=inf)
        return len(body)

    assert benchmark(render_all) > CHILDREN * len(VALUE)
