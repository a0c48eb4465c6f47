"""kvdctl replicas, on servers that answer as replicas do."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Site:
    """Two replicas, each a server of its own, and what they say."""

    def __init__(self) -> None:
        self.leader = "a1"
        self.handed_over = 0
        self.urls = {"a1": "", "b2": ""}

    def shown(self, own: str) -> dict[str, object]:
        def row(member, name, applied, durable, seen):
            # Reports of before the last election.
            state = "following" if member == self.leader else "leading"
            return {
                "id": member,
                "name": name,
                "state": state,
                "applied": applied,
                "durable": durable,
                "clientURLs": [self.urls[member]],
                "version": "0.1.0",
                "seenSeconds": seen,
            }

        return {
            "id": own,
            "leader": self.leader,
            "engine": {
                "url": "etcd://h1:2379/kvd/prod",
                "bytes": 18 << 20,
                "quotaBytes": 2 << 30,
                "silentSeconds": 0.25,
            },
            "replicas": [row("a1", "h1", 26503, 26440, 0.42), row("b2", "h2", 26500, None, None)],
        }


def handler(site: Site, own: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.answer(200, json.dumps(site.shown(own)).encode() + b"\n")

        def do_POST(self):
            assert self.path == "/v2/replicas/hand-over"
            if site.leader != own:
                self.answer(403, b'{"message":"not current leader"}')
                return
            site.handed_over += 1
            site.leader = "b2" if own == "a1" else "a1"
            self.answer(204, b"")

        def answer(self, status, body):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def served(site: Site) -> Iterator[None]:
    servers = []
    for own in site.urls:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(site, own))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        site.urls[own] = f"http://127.0.0.1:{server.server_address[1]}"
        servers.append(server)
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def site():
    """Two replicas, of which h1 leads."""
    found = Site()
    with served(found):
        yield found


def test_the_table_has_each_replica_and_the_engine(site, kvdctl):
    status, out, err = kvdctl("--endpoints", site.urls["b2"], "replicas")
    assert (status, err) == (0, "")
    first, second = site.urls["a1"], site.urls["b2"]
    pad = " " * (max(map(len, (first, second))) - len(first))
    pad2 = " " * (max(map(len, (first, second))) - len(second))
    blank = " " * (max(map(len, (first, second))) - len("URL"))
    assert out.splitlines() == [
        f"NAME  ID  STATE      APPLIED  BEHIND  DURABLE  URL{blank}  VERSION  SEEN",
        f"h1    a1  leading      26503       0    26440  {first}{pad}  0.1.0    0.4 s",
        f"h2    b2  following    26500       3        -  {second}{pad2}  0.1.0    not lately",
        "",
        "engine etcd://h1:2379/kvd/prod, 18 MiB of 2048 MiB, last answer 0.2 s ago",
    ]


def test_json_is_what_the_server_says(site, kvdctl):
    status, out, _ = kvdctl("--endpoints", site.urls["b2"], "replicas", "-o", "json")
    assert status == 0
    assert json.loads(out) == site.shown("b2")


@pytest.mark.parametrize("asked", ["a1", "b2"])
def test_the_lead_is_handed_over_at_any_replica(site, kvdctl, asked):
    status, out, err = kvdctl("--endpoints", site.urls[asked], "replicas", "--hand-over")
    assert (status, err) == (0, "")
    assert site.handed_over == 1
    states = [line.split()[2] for line in out.splitlines()[1:3]]
    assert states == ["following", "leading"]


def test_without_a_leader_nothing_is_handed_over(site, kvdctl):
    site.leader = ""
    status, out, err = kvdctl("--endpoints", site.urls["a1"], "replicas", "--hand-over")
    assert status != 0
    assert (out, err) == ("", "kvdctl: there is no leader that could hand over\n")


def test_a_server_alone_has_no_replicas(ctl):
    status, out, err = ctl("replicas")
    assert status != 0
    assert (out, err) == (
        "",
        "kvdctl: this server has no replicas; see `kvdctl help replicas`\n",
    )
