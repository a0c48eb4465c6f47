"""Limits on connections: how many, which gives way, floods, files."""

import contextlib
import json
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence

import pytest

from kvd.limits.crowd import BODY, BUSY, CLOSING, HEAD, IDLE, SILENT, UNREAD, Crowd, State
from kvd.net.fd_limit import divide
from tests.monitoring.test_metrics import scrape
from tests.support.log_texts import log_text
from tests.support.memory import assert_refused, rejected
from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, ROOT
from tests.support.waiting import wait_until


def test_connections_beyond_the_limit_are_refused_and_others_served(make_server):
    server = make_server("--max-connections", "20", "--max-watchers", "20").start()
    with contextlib.ExitStack() as stack:
        kept = [stack.enter_context(Raw(server.port)) for _ in range(20)]
        for raw in kept:
            assert raw.send(request("GET", "/v2/keys/w?wait=true")).head().status == 200
        for _ in range(300):
            with Raw(server.port) as turned_away:
                answer = turned_away.ask("GET", "/version")
                assert answer.body == b"503 Service Unavailable: too many connections"
        silent = [stack.enter_context(Raw(server.port)) for _ in range(20)]
        for target in ("/health", "/readyz", "/livez?verbose", "/metrics"):
            with Raw(server.port) as looking:
                answer = looking.ask("GET", target)
                assert (answer.status, answer.headers["connection"]) == (200, "close")
        # Whoever says nothing there is told so, too.
        assert all(raw.answer().status == 503 for raw in silent)
        kept[0].reset()
        client = server.client()
        assert rejected(client, "too_many_connections") == 320
        client.put("/w", 1)
        assert all(b'"action":"set"' in b"".join(raw.chunks()) for raw in kept[1:])
    server.wait_for_log("too many connections: 20 are open")
    assert server.stderr.count("too many connections: 20 are open") == 1


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /version HTT",
        request("GET", "/version"),
        request("PUT", "/v2/keys/begun", body=b"value=1")[:-1],
    ],
    ids=["silent", "unfinished head", "idle", "unfinished body"],
)
def test_the_longest_idle_connection_gives_way_and_watches_do_not(make_server, begun):
    server = make_server("--max-connections", "20").start()
    with contextlib.ExitStack() as stack:
        watching = [stack.enter_context(Raw(server.port)) for _ in range(5)]
        for raw in watching:
            assert raw.send(request("GET", "/v2/keys/w?wait=true")).head().status == 200
        idle = []
        for number in range(60):
            idle.append(stack.enter_context(Raw(server.port)).send(begun))
            if begun.endswith(b"\r\n\r\n"):
                assert idle[-1].answer().status == 200
            with contextlib.closing(server.client()) as newcomer:
                assert newcomer.put(f"/k{number}", 1).status == 201
        client = server.client()
        assert client.request("GET", "/health").status == 200
        samples = scrape(client)
        assert samples["kvd_connections_displaced_total"] >= 40
        assert samples["kvd_connections"] <= 20
        assert rejected(client, "too_many_connections") == 0
        for raw in idle[:30]:
            raw.rest()
        client.put("/w", 1)
        for raw in watching:
            assert b'"action":"set"' in b"".join(raw.chunks())


def test_some_connections_are_left_to_requests(make_server):
    server = make_server("--max-connections", "20").start()
    with contextlib.ExitStack() as stack:
        for _ in range(19):
            raw = stack.enter_context(Raw(server.port))
            assert raw.send(request("GET", "/v2/keys/w?wait=true")).head().status == 200
        client = server.client()
        assert_refused(client.get("/w", wait="true"), 300, "too many watchers")
        for number in range(20):
            with contextlib.closing(server.client()) as newcomer:
                assert newcomer.put(f"/k{number}", 1).status == 201


class Guest:
    """A connection in a crowd."""

    looked_at = 0

    def __init__(self, address: str, state: State) -> None:
        self.address = address
        self._state = state
        self.is_closed = False

    @property
    def state(self) -> State:
        Guest.looked_at += 1
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state

    def abort(self) -> None:
        self.is_closed = True
        self.state = BUSY


def crowd_of(*members: Guest) -> Crowd:
    crowd = Crowd(members)
    for member in members:
        crowd.enters(member.address)
    return crowd


def displaced(crowd: Crowd, members: Sequence[Guest], now: float) -> list[int]:
    """The places of all that give way at a time, in their order."""
    newcomer = Guest("b", (IDLE, 0.0))
    closed: list[int] = []
    while crowd.displace(newcomer, now):
        closed += [n for n, one in enumerate(members) if one.is_closed and n not in closed]
    assert not newcomer.is_closed
    return closed


def test_the_connection_that_gives_way_is_chosen_by_address_and_by_state():
    members = [
        Guest("a", (IDLE, 5.0)), Guest("few", (IDLE, 1.0)), Guest("a", BUSY),
        Guest("a", (HEAD, 2.0)), Guest("a", (IDLE, 4.0)), Guest("a", (BODY, 0.0)),
        Guest("a", (CLOSING, 0.0)), Guest("a", (UNREAD, 0.0)),
    ]  # fmt: skip
    crowd = crowd_of(*members)
    assert displaced(crowd, members, now=100.0) == [6, 3, 4, 0, 5, 7, 1]
    members[2].state = (IDLE, 20.0)
    newcomer = Guest("b", (IDLE, 0.0))
    assert not crowd.displace(newcomer, now=100.5), "none is looked for twice in a second"
    assert crowd.displace(newcomer, now=101.5)
    assert crowd.displaced == 8


def test_one_that_has_just_come_is_not_chosen_by_its_kind():
    """Or a flood of others would close it before its request is there."""
    members = [
        Guest("a", (SILENT, 100.0)), Guest("a", (IDLE, 99.0)), Guest("a", (HEAD, 98.0)),
        Guest("a", (BODY, 50.0)), Guest("a", (UNREAD, 99.5)),
    ]  # fmt: skip
    assert displaced(crowd_of(*members), members, now=100.5) == [3, 2, 1, 0]


def test_of_very_many_those_of_the_first_kind_give_way():
    members = [Guest("a", (IDLE if n % 3 else SILENT, float(n))) for n in range(9000)]
    crowd = crowd_of(*members)
    newcomer = Guest("a", (IDLE, 9e9))
    looked_at = Guest.looked_at
    for _ in range(2000):
        assert crowd.displace(newcomer, now=10_000.0)
    # Not all for each: that would take the loop tens of milliseconds.
    assert Guest.looked_at - looked_at < 100_000
    assert not any(member.is_closed for n, member in enumerate(members) if n % 3)


def test_what_none_has_needed_lately_is_not_kept():
    members = [Guest("a", (IDLE, 0.0)) for _ in range(100)]
    crowd = Crowd(members)
    assert crowd.displace(Guest("a", (IDLE, 0.0)), now=100.0)
    crowd.tick()
    crowd.tick()
    last = weakref.ref(members[0])
    members.clear()
    assert last() is None


def test_a_connection_that_asks_meanwhile_does_not_give_way():
    members = [Guest("a", (IDLE, float(n))) for n in range(3)]
    crowd = crowd_of(*members)
    newcomer = Guest("a", (IDLE, 9.0))
    assert crowd.displace(newcomer, now=100.0)
    members[1].state = (IDLE, 8.0)
    assert crowd.displace(newcomer, now=100.0)
    assert [member.is_closed for member in members] == [True, False, True]


def test_a_flood_takes_no_file_that_the_log_needs(make_server):
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
        "sys.argv[0] = 'kvd'; runpy.run_module('kvd', run_name='__main__')"
    )
    flags = ("--wal-segment-bytes", "65536", "--snapshot-count", "50")
    server = make_server(*flags, launch=("-c", limited)).start()
    samples = scrape(server.client())
    most = int(samples["kvd_connections_max"])
    assert samples["process_max_fds"] == 256
    assert 100 < most < 200
    stop = threading.Event()
    flood = threading.Thread(target=connect_and_keep, args=[server.port, 400, stop])
    flood.start()
    # Each time on a new connection: one that is idle meanwhile may give way, here and below.
    wait_until(
        lambda: asked_again(lambda: scrape(server.client()))["kvd_connections_displaced_total"] > 50
    )
    for i in range(400):
        assert asked_again(lambda: server.client().put(f"/k{i}", "v" * 2000)).status < 300  # noqa: B023
    stop.set()
    flood.join()
    server.wait_for_log(log_text("wrote a snapshot"))
    for words in ("too many open files", "Too many open files", "out of system resource"):
        assert words not in server.stderr


def asked_again(ask):
    """Ask until the connection has not given way to another one before its answer."""
    while True:
        try:
            return ask()
        except ConnectionError:
            pass


def connect_and_keep(port: int, count: int, stop: threading.Event) -> None:
    """Keep as many connections open as there may be, and ask for more again and again."""
    with contextlib.ExitStack() as stack:
        kept = []
        while not stop.is_set():
            with contextlib.suppress(OSError):
                made = stack.enter_context(
                    contextlib.closing(socket.create_connection(("127.0.0.1", port), 5))
                )
                kept.append(made)
            if len(kept) > count:
                kept.pop(0).close()


@pytest.mark.parametrize(
    ("files", "wanted", "expected"),
    [
        (20_000, None, (2500, 256, 17_180)),
        (1 << 20, None, (4096, 256, 1_044_160)),
        (1024, None, (128, 128, 704)),
        (1024, 500, (128, 128, 500)),
        (1024, 5000, (128, 128, 704)),
        (20, None, (2, 2, 1)),
    ],
)
def test_files_are_divided_so_that_some_are_left(files, wanted, expected, caplog):
    assert divide(files, wanted) == expected
    assert sum(expected) <= max(files, 60)
    warned = "--max-connections 5000: this process may open 1024 files" in caplog.text
    assert warned == (wanted == 5000)


@pytest.mark.limits_full
@pytest.mark.timeout(900)
def test_a_hundred_thousand_attempts_to_connect(make_server):
    """Each is answered: the longest idle connection gives way to it."""
    server = make_server().start()
    client = server.client()
    most = int(scrape(client)["kvd_connections_max"])
    # Each has an address of its own, because the last free ports of one are long looked for.
    codes = [
        FLOOD.format(port=server.port, count=25_000, source=f"127.0.0.{i + 2}") for i in range(4)
    ]
    with contextlib.ExitStack() as stack:
        floods = [stack.enter_context(flood(code)) for code in codes]
        results = [one.stdout for one in floods]
        counts, slowest = [], 0.0
        while results:
            began = time.monotonic()
            assert client.put("/alive", 1).status in (200, 201)
            slowest = max(slowest, time.monotonic() - began)
            for result in select.select(results, [], [], 0)[0]:
                counts.append(json.loads(result.readline()))
                results.remove(result)
        total = {key: sum(count[key] for count in counts) for key in counts[0]}
        assert total == {"answered": 100_000, "told": 0, "dropped": 0}
        samples = scrape(client)
        assert rejected(client, "too_many_connections") == 0
        # Those of this test's own client are the rest.
        assert most - 2 <= samples["kvd_connections"] <= most
        assert samples["kvd_connections_displaced_total"] >= 100_000 - most
    assert slowest < PATIENCE_S


@contextlib.contextmanager
def flood(code: str) -> Iterator[subprocess.Popen[str]]:
    """A process that prints what it counted and lives until this is left."""
    argv = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


FLOOD = """
import collections, json, resource, socket, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
kept, answered, told, dropped = collections.deque(maxlen=hard - 100), 0, 0, 0
for _ in range({count}):
    made = socket.socket()
    made.settimeout(60)
    made.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    made.bind(("{source}", 0))
    made.connect(("127.0.0.1", {port}))
    made.sendall(b"GET /version HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n")
    try:
        answer = made.recv(4096)
    except ConnectionError:
        answer = b""
    kept.append(made)
    answered += answer.startswith(b"HTTP/1.1 200")
    told += b"503" in answer
    dropped += not answer
print(json.dumps({{"answered": answered, "told": told, "dropped": dropped}}), flush=True)
sys.stdin.read()
"""
