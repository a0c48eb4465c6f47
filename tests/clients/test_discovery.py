"""Real etcd 3.4 members that find each other through kvd: as a discovery service by itself, and
behind the one of Debian (discovery.etcd.io)."""

import contextlib
import http.client
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.processes import Process, program, wait_for_port
from tests.support.server import PATIENCE_S, Client, Server, free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

TOKEN = "/discovery/6c007a14875d53d9bf0ef5a6fc0257c8"
SIZE = 3


class Member:
    """An etcd that is told nothing of the others but where to ask for them."""

    def __init__(self, start: Callable[..., Process], directory: Path, name: str, url: str) -> None:
        self.port, peer_port = free_port(), free_port()
        peer = f"http://127.0.0.1:{peer_port}"
        client = f"http://127.0.0.1:{self.port}"
        self.name, self.peer = name, peer
        self.process = start(
            *(program("etcd"), "--name", name, "--data-dir", directory / name),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--discovery", url, "--enable-v2=true", "--unsafe-no-fsync=false"),
        )

    def client(self) -> Client:
        return Client(self.port)


def members(member: Member) -> dict[str, list[str]]:
    """Whom a member has as members: names and peer URLs."""
    with contextlib.closing(member.client()) as client:
        found = client.request("GET", "/v2/members").json["members"]
    return {member["name"]: member["peerURLs"] for member in found}


def wait_for_health(member: Member) -> None:
    """Wait until it serves, which takes a leader."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        refusals = (OSError, http.client.HTTPException, ValueError)
        with contextlib.closing(member.client()) as client, contextlib.suppress(*refusals):
            if client.request("GET", "/health").json["health"] == "true":
                return
        assert time.monotonic() < deadline, member.process.text
        time.sleep(0.1)


def registered(server: Server, token: str) -> dict[str, str]:
    """What has been written below a token: names and peer URLs."""
    nodes = server.client().get(token).json["node"].get("nodes", [])
    return dict(node["value"].split("=", 1) for node in nodes)


def assert_one_cluster(cluster: list[Member]) -> None:
    """All have the same members, and what is written to one is read from another."""
    for member in cluster:
        wait_for_health(member)
    expected = {member.name: [member.peer] for member in cluster}
    assert [members(member) for member in cluster] == [expected] * len(cluster)
    with contextlib.closing(cluster[0].client()) as client:
        assert client.put("/from", cluster[0].name).status == 201
    with contextlib.closing(cluster[-1].client()) as client:
        assert client.get("/from", quorum="true").json["node"]["value"] == cluster[0].name


def test_three_members_make_a_cluster(fresh_server, start, tmp_path):
    client = fresh_server.client()
    assert client.put(f"{TOKEN}/_config/size", SIZE).status == 201
    url = f"{fresh_server.url}/v2/keys{TOKEN}"
    cluster = [Member(start, tmp_path, f"infra{n}", url) for n in range(SIZE)]
    assert_one_cluster(cluster)
    assert registered(fresh_server, TOKEN) == {member.name: member.peer for member in cluster}


def test_three_members_meet_through_a_token_of_kvds(make_server, start, tmp_path):
    server = make_server("--discovery").start()
    made = server.client().request("GET", f"/new?size={SIZE}")
    url = made.body.decode()
    cluster = [Member(start, tmp_path, f"infra{n}", url) for n in range(SIZE)]
    assert_one_cluster(cluster)
    token = url.partition("/v2/keys")[2]
    assert registered(server, token) == {member.name: member.peer for member in cluster}


def test_members_go_on_when_kvd_is_killed_while_they_wait(fresh_server, start, tmp_path):
    client = fresh_server.client()
    client.put(f"{TOKEN}/_config/size", SIZE)
    url = f"{fresh_server.url}/v2/keys{TOKEN}"
    cluster = [Member(start, tmp_path, f"infra{n}", url) for n in range(SIZE - 1)]
    for member in cluster:
        member.process.wait_for("found 2 peer(s), waiting for 1 more")
    fresh_server.listen = fresh_server.url
    fresh_server.kill()
    fresh_server.start()
    cluster.append(Member(start, tmp_path, f"infra{SIZE - 1}", url))
    assert_one_cluster(cluster)


def test_one_member_too_many_is_answered_that_the_cluster_is_full(fresh_server, start, tmp_path):
    client = fresh_server.client()
    client.put(f"{TOKEN}/_config/size", 1)
    url = f"{fresh_server.url}/v2/keys{TOKEN}"
    assert_one_cluster([Member(start, tmp_path, "infra0", url)])
    late = Member(start, tmp_path, "infra1", url)
    # It would serve as a proxy of the others, unless told otherwise.
    late.process.wait_for("discovery cluster")
    late.process.wait_for("full")
    assert list(registered(fresh_server, TOKEN)) == ["infra0"]


def test_members_meet_through_the_discovery_service_of_debian(fresh_server, start, tmp_path):
    port = free_port()
    service = start(
        *(program("discovery.etcd.io"), "--addr", f"127.0.0.1:{port}"),
        *("--etcd", fresh_server.url, "--host", f"http://127.0.0.1:{port}"),
    )
    wait_for_port(port, service.has_ended)
    with contextlib.closing(Client(port)) as client:
        made = client.request("GET", f"/new?size={SIZE}")
        assert made.status == 200, made.body
    url = made.body.decode()
    token = f"/_etcd/registry/{url.rpartition('/')[2]}"
    size = fresh_server.client().get(f"{token}/_config/size")
    assert size.json["node"]["value"] == str(SIZE)
    cluster = [Member(start, tmp_path, f"infra{n}", url) for n in range(SIZE)]
    assert_one_cluster(cluster)
    assert registered(fresh_server, token) == {member.name: member.peer for member in cluster}


def test_a_token_that_was_never_made_is_refused(fresh_server, start, tmp_path):
    member = Member(start, tmp_path, "infra0", f"{fresh_server.url}/v2/keys/discovery/never-made")
    assert member.process.wait() != 0
    assert (
        "failed to join discovery cluster (100: Key not found (/discovery)" in member.process.text
    )
