"""Requests, sizes and refusals that the tests of connections share."""

from pathlib import Path

from tests.support.raw import request
from tests.support.server import Client, Server

TEXT = "text/plain; charset=utf-8"
CLOSE = "Connection: close"
VERSION = request("GET", "/version")
FORM_BYTES_MAX = 10 << 20
HEADER_BYTES_MAX = 64 << 10
LARGE = 6000
# Headers that are the same whenever the same is answered.
FIXED = ("content-type", "x-etcd-cluster-id", "x-raft-term", "server")
EVIL = request("PUT", "/v2/keys/evil", body=b"value=evil")


def watchers(client: Client) -> int:
    return client.request("GET", "/v2/stats/store").json["watchers"]


def resident_bytes(server: Server) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def assert_refused(answer, status, detail="", headers=()):
    """It is the answer of HTTP itself, which ends the connection."""
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == TEXT
    assert "x-etcd-cluster-id" not in answer.headers
    assert answer.body.decode().startswith(str(status))
    assert answer.body.decode().endswith(detail)
