"""The small endpoints: version, members, health, statistics."""

import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.raw import Raw, request
from tests.support.server import Server, running

ID = r"[1-9a-f][0-9a-f]{0,15}"


@pytest.fixture
def raw(server: Server) -> Iterator[Raw]:
    with Raw(server.port) as connection:
        yield connection


def cluster_id(raw: Raw) -> str:
    return raw.ask("GET", "/v2/keys/").headers["x-etcd-cluster-id"]


# Which header a route has beside those of every answer.
PLAIN = {"server", "date", "content-type", "content-length"}


@pytest.mark.parametrize(
    ("target", "content_type", "others"),
    [
        ("/version", "application/json", set()),
        ("/health", "text/plain; charset=utf-8", set()),
        ("/v2/stats/store", "application/json", set()),
        ("/v2/stats/self", "application/json", set()),
        ("/v2/stats/leader", "application/json", set()),
        ("/v2/machines", "text/plain; charset=utf-8", set()),
        ("/v2/members", "application/json", {"x-etcd-cluster-id"}),
        ("/v2/members/", "application/json", {"x-etcd-cluster-id"}),
        ("/v2/members/leader", "application/json", {"x-etcd-cluster-id"}),
        ("/v2/members/none", "application/json", {"x-etcd-cluster-id"}),
    ],
)
def test_headers(raw, target, content_type, others):
    answer = raw.ask("GET", target)
    assert answer.headers.keys() == PLAIN | others
    assert answer.headers["content-type"] == content_type
    # A query changes nothing, whatever it holds.
    assert raw.ask("GET", target + "?x=%zz;").status == answer.status


@pytest.mark.parametrize(
    "condition", ["If-None-Match: *", "Range: bytes=0-1", "If-Modified-Since: now"]
)
def test_conditions_are_not_looked_at(raw, condition):
    answer = raw.ask("GET", "/version", condition)
    assert (answer.status, len(answer.body)) == (200, 45)


def test_the_version_is_that_of_the_api(raw):
    answer = raw.ask("GET", "/version")
    assert answer.body == b'{"etcdserver":"3.4.23","etcdcluster":"3.4.0"}'


def test_health_is_a_string(raw):
    answer = raw.ask("GET", "/health")
    assert (answer.status, answer.body) == (200, b'{"health":"true"}')


def test_the_machines_are_the_urls_listened_on(server, raw):
    answer = raw.ask("GET", "/v2/machines")
    assert answer.body.decode() == server.url
    head = raw.ask("HEAD", "/v2/machines")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(server.url))


def test_the_member(server, raw):
    answer = raw.ask("GET", "/v2/members")
    assert answer.status == 200
    (member,) = answer.json["members"]
    assert re.fullmatch(ID, member["id"])
    assert answer.body.decode() == (
        f'{{"members":[{{"id":"{member["id"]}","name":"default",'
        f'"peerURLs":["http://localhost:2380"],"clientURLs":["{server.url}"]}}]}}\n'
    )
    assert answer.headers["x-etcd-cluster-id"] == cluster_id(raw)
    assert raw.ask("GET", "/v2/members/").body == answer.body
    leader = raw.ask("GET", "/v2/members/leader")
    assert leader.json == member
    assert leader.body.endswith(b"}\n")


def test_no_other_member_is_found(raw):
    (member,) = raw.ask("GET", "/v2/members").json["members"]
    for path in (member["id"], "none", "leader/", "leader/x", "%20", "%ff"):
        answer = raw.ask("GET", f"/v2/members/{path}")
        assert (answer.status, answer.body) == (404, b'{"message":"Not found"}')


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_members_without_an_id_cannot_be_changed(raw, method):
    for target in ("/v2/members", "/v2/members/"):
        answer = raw.ask(method, target, body=b"{}")
        assert (answer.status, answer.body) == (405, b"Method Not Allowed\n")
        assert "allow" not in answer.headers
        assert answer.headers["x-etcd-cluster-id"] == cluster_id(raw)


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("zz", "zz"),
        ("0", "0"),
        ("1234", "1234"),
        ("a/b", "a/b"),
        ("a+b%20c", "a+b c"),
        ("%C3%A4", "\u00e4"),
        ("%ff", "\ufffd"),
        ("leader", "leader"),
    ],
)
def test_an_unknown_member_is_named(raw, method, path, shown):
    body = b'{"peerURLs":["http://h:1"]}' if method == "PUT" else None
    answer = raw.ask(method, f"/v2/members/{path}", "Content-Type: application/json", body=body)
    assert answer.status == 404
    assert answer.json == {"message": f"No such member: {shown}"}
    assert not answer.body.endswith(b"\n")


def test_the_member_s_own_statistics(server, raw):
    def shown():
        answer = raw.ask("GET", "/v2/stats/self")
        assert not answer.body.endswith(b"\n")
        return json.loads(answer.body)

    first = shown()
    member = raw.ask("GET", "/v2/members/leader").json
    assert list(first) == ["name", "id", "state", "startTime", "leaderInfo",
                           "recvAppendRequestCnt", "sendAppendRequestCnt"]  # fmt: skip
    assert list(first["leaderInfo"]) == ["leader", "uptime", "startTime"]
    assert first["name"] == "default"
    assert first["id"] == first["leaderInfo"]["leader"] == member["id"]
    assert first["state"] == "StateLeader"
    assert first["startTime"] == first["leaderInfo"]["startTime"]
    started = datetime.fromisoformat(first["startTime"][:19] + "+00:00")
    assert timedelta(0) <= datetime.now(UTC) - started < timedelta(minutes=10)
    assert re.fullmatch(r"(\d+m)?\d+(\.\d+)?(s|ms|µs)", first["leaderInfo"]["uptime"])
    assert shown()["startTime"] == first["startTime"]


def test_a_leader_without_followers(raw):
    member = raw.ask("GET", "/v2/members/leader").json
    answer = raw.ask("GET", "/v2/stats/leader")
    assert answer.body.decode() == f'{{"leader":"{member["id"]}","followers":{{}}}}'


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    urls = "https://kv.example:443,http://127.0.0.1:4001"
    yield from running(
        Server(
            tmp_path_factory.mktemp("data"),
            "--name",
            "b\u00e4r <1>",
            "--advertise-client-urls",
            urls,
        )
    )


def test_what_is_advertised_is_shown(named):
    client = named.client()
    machines = client.request("GET", "/v2/machines").body.decode()
    assert machines == "http://127.0.0.1:4001, https://kv.example:443"
    (member,) = client.request("GET", "/v2/members").json["members"]
    assert member["clientURLs"] == ["https://kv.example:443", "http://127.0.0.1:4001"]
    assert member["name"] == client.request("GET", "/v2/stats/self").json["name"] == "b\u00e4r <1>"


def test_ids_survive_a_restart_and_start_times_do_not(make_server):
    server = make_server().start()

    def identity() -> tuple[str, str]:
        client = server.client()
        members = client.request("GET", "/v2/members")
        return members.headers["x-etcd-cluster-id"], members.json["members"][0]["id"]

    def start_time() -> str:
        return server.client().request("GET", "/v2/stats/self").json["startTime"]

    before, started = identity(), start_time()
    assert before[0] != before[1]
    server.kill()
    server.start()
    assert identity() == before
    assert start_time() > started


def test_stores_have_ids_of_their_own(make_server, tmp_path):
    servers = [make_server(data_dir=tmp_path / name).start() for name in ("a", "b")]
    ids = {
        server.client().request("GET", "/v2/members").headers["x-etcd-cluster-id"]
        for server in servers
    }
    assert len(ids) == 2


def test_every_route_is_served_on_every_listener(make_server):
    server = make_server(listen="http://127.0.0.1:0,http://127.0.0.1:0").start()
    assert len({server.client(url).request("GET", "/v2/members").body for url in server.urls}) == 1
    machines = server.client().request("GET", "/v2/machines").body.decode()
    assert machines == ", ".join(sorted(server.urls))


def test_a_body_where_none_is_read_does_no_harm(raw):
    for body in (b"{}", b"%ff=%zz;&", b"--b", b"\xff\0"):
        for content_type in ("application/json", "multipart/form-data; boundary=b",
                             "multipart/form-data", "text/plain", ";"):  # fmt: skip
            for target in ("/v2/members", "/version", "/nothing"):
                sent = request("POST", target, body=body)
                sent = sent.replace(b"application/x-www-form-urlencoded", content_type.encode())
                assert raw.send(sent).answer().status >= 400
    assert raw.ask("GET", "/version").status == 200


def test_a_port_is_free_again_after_a_stop(make_server):
    server = make_server().start()
    port = server.port
    server.client().request("GET", "/version")
    server.terminate()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))
