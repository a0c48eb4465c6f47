"""Steps that `bench.cost` counts: requests of each kind, alone and in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from bench.load.wire import render

if TYPE_CHECKING:
    from bench.cost.in_process import Inside

BATCH = 16
CHILDREN = 100
WATCHERS = 64

KEYS = "/v2/keys/cost"
_VALUE = b"x" * 100
_WRITE = b"value=" + _VALUE
_SWAP = b"prevValue=%b&value=%b" % (_VALUE, _VALUE)
_REFRESH = b"ttl=6000&refresh=true&prevExist=true"

Step = Callable[[], object]


class Case(NamedTuple):
    """A step that is counted: `make` prepares it; what it costs is divided by `per`."""

    name: str
    make: Callable[[Inside], Step]
    per: int = 1


def get(kvd: Inside) -> Step:
    """Read a key."""
    kvd.request("PUT", KEYS + "/get", _WRITE)
    return lambda: kvd.request("GET", KEYS + "/get")


def put_alone(kvd: Inside) -> Step:
    """Overwrite a key, in a batch of its own."""
    return lambda: kvd.request("PUT", KEYS + "/put", _WRITE)


def put_together(kvd: Inside) -> Step:
    """Overwrite keys, a batch of many."""
    return together(kvd, [("PUT", f"{KEYS}/batch/{n}", _WRITE) for n in range(BATCH)])


def together(kvd: Inside, *batches: list[tuple[str, str, bytes]]) -> Step:
    """Return what sends requests, each list of them as one batch."""
    rendered = [[render(*request) for request in batch] for batch in batches]

    def step() -> None:
        for requests in rendered:
            kvd.send_together(requests)
            for connection in range(len(requests)):
                kvd.receive(connection)

    return step


def put_escaped(kvd: Inside) -> Step:
    """Overwrite keys with a document that has to be escaped, in the form and in the answer."""
    body = b"value=%7B%22name%22%3A+%22a%26b%22%2C+%22list%22%3A+%5B1%2C+2%5D%7D"
    return together(kvd, [("PUT", f"{KEYS}/escaped/{n}", body) for n in range(BATCH)])


def compare_and_swap(kvd: Inside) -> Step:
    """Overwrite a key on condition of the value before."""
    kvd.request("PUT", KEYS + "/cas", _WRITE)
    return lambda: kvd.request("PUT", KEYS + "/cas", _SWAP)


def swap_together(kvd: Inside) -> Step:
    """Overwrite keys on that condition, a batch of many."""
    paths = [f"{KEYS}/swaps/{n}" for n in range(BATCH)]
    for path in paths:
        kvd.request("PUT", path, _WRITE)
    return together(kvd, [("PUT", path, _SWAP) for path in paths])


def swap_by_query(kvd: Inside) -> Step:
    """The same, with the condition in the query string, as etcd's own client has it."""
    paths = [f"{KEYS}/queried/{n}" for n in range(BATCH)]
    for path in paths:
        kvd.request("PUT", path, _WRITE)
    query = "?prevValue=" + _VALUE.decode()
    return together(kvd, [("PUT", path + query, _WRITE) for path in paths])


def post(kvd: Inside) -> Step:
    """Add an in-order key."""
    return lambda: kvd.request("POST", KEYS + "/post", _WRITE)


def post_together(kvd: Inside) -> Step:
    """Add in-order keys, a batch of many."""
    return together(kvd, [("POST", KEYS + "/posts", _WRITE)] * BATCH)


def delete(kvd: Inside) -> Step:
    """Make a key and delete it."""

    def step() -> None:
        kvd.request("PUT", KEYS + "/delete", _WRITE)
        kvd.request("DELETE", KEYS + "/delete")

    return step


def delete_together(kvd: Inside) -> Step:
    """Make keys and delete them, each a batch of many."""
    paths = [f"{KEYS}/deleted/{n}" for n in range(BATCH)]
    puts = [("PUT", path, _WRITE) for path in paths]
    return together(kvd, puts, [("DELETE", path, b"") for path in paths])


def refresh(kvd: Inside) -> Step:
    """Refresh a TTL."""
    kvd.request("PUT", KEYS + "/refresh", b"ttl=6000&value=" + _VALUE)
    return lambda: kvd.request("PUT", KEYS + "/refresh", _REFRESH)


def refresh_together(kvd: Inside) -> Step:
    """Refresh TTLs, a batch of many."""
    paths = [f"{KEYS}/leases/{n}" for n in range(BATCH)]
    for path in paths:
        kvd.request("PUT", path, b"ttl=6000&value=" + _VALUE)
    return together(kvd, [("PUT", path, _REFRESH) for path in paths])


def list_kept(kvd: Inside) -> Step:
    """List an unchanged directory."""
    for n in range(CHILDREN):
        kvd.request("PUT", f"{KEYS}/kept/{n}", _WRITE)
    return lambda: kvd.request("GET", KEYS + "/kept")


def list_changed(kvd: Inside) -> Step:
    """List a directory; what shows a TTL is rendered for each reader."""
    for n in range(CHILDREN - 1):
        kvd.request("PUT", f"{KEYS}/anew/{n}", _WRITE)
    kvd.request("PUT", KEYS + "/anew/ttl", b"ttl=6000&value=" + _VALUE)
    return lambda: kvd.request("GET", KEYS + "/anew")


def long_poll(kvd: Inside) -> Step:
    """Ask for the next event of a key on many connections, and write it."""
    request = render("GET", KEYS + "/polled?wait=true")
    write = render("PUT", KEYS + "/polled", _WRITE)

    def step() -> None:
        kvd.send_together([request] * WATCHERS)
        kvd.settle()
        kvd.exchange(WATCHERS, write)
        for connection in range(WATCHERS):
            kvd.receive(connection)

    return step


def stream(kvd: Inside) -> Step:
    """Write a key that many streams watch; they stay, so this case comes last."""
    kvd.send_together([render("GET", KEYS + "/streamed?wait=true&stream=true")] * WATCHERS)
    kvd.settle()
    write = render("PUT", KEYS + "/streamed", _WRITE)

    def step() -> None:
        kvd.exchange(WATCHERS, write)
        for connection in range(WATCHERS):
            kvd.receive_until(connection, is_event)

    return step


def is_event(received: bytes) -> bool:
    """Whether a whole event of a stream has come."""
    return received.endswith(b"}\n\r\n")


CASES = (
    Case("GET", get),
    Case("PUT", put_alone),
    Case(f"PUT, {BATCH} in a batch", put_together, BATCH),
    Case(f"PUT with escapes, {BATCH} in a batch", put_escaped, BATCH),
    Case("compare-and-swap", compare_and_swap),
    Case(f"compare-and-swap, {BATCH} in a batch", swap_together, BATCH),
    Case(f"compare-and-swap by query, {BATCH} in a batch", swap_by_query, BATCH),
    Case("in-order POST", post),
    Case(f"in-order POST, {BATCH} in a batch", post_together, BATCH),
    Case("PUT and DELETE", delete, 2),
    Case(f"PUT and DELETE, {BATCH} in a batch", delete_together, 2 * BATCH),
    Case("TTL refresh", refresh),
    Case(f"TTL refresh, {BATCH} in a batch", refresh_together, BATCH),
    Case("listing, unchanged", list_kept),
    Case("listing, each child", list_changed, CHILDREN),
    Case("long poll, asked and told", long_poll, WATCHERS),
    Case("stream, told", stream, WATCHERS),
)
