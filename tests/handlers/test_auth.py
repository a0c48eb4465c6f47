"""`/v2/auth` and the write side of `/v2/members`: what is answered is there for good.

Statuses, texts and headers are in the recorded scenarios `users`, `access` and `members` of
tests/conformance.
"""

import contextlib
import json
import re

import pytest

from kvd.ctl import main
from kvd.handlers.auth import Users
from kvd.v2.documents.auth_json import ELEMENTS_MAX
from tests.monitoring.test_metrics import scrape
from tests.support.guarded import AL, ROOT, ask_for_users
from tests.support.log_texts import log_text
from tests.support.server import Answer, Client

JSON = {"Content-Type": "application/json"}


def shown(client: Client) -> list[bytes]:
    """All that is shown of users, roles and members, and what they may do."""
    answers = [
        client.request("GET", target, None, headers)
        for target, headers in (
            ("/v2/auth/enable", {}),
            ("/v2/auth/users", ROOT),
            ("/v2/auth/roles", ROOT),
            ("/v2/members", {}),
            ("/v2/keys/al/x", AL),
            ("/v2/keys/other", AL),
            ("/v2/keys/al/x", {}),
        )
    ]
    # The clients' address changes with each start.
    return [re.sub(rb"127.0.0.1:\d+", b"ADDRESS", answer.body) for answer in answers]


def peer_urls(client: Client, *urls: str) -> int:
    member = client.request("GET", "/v2/members/leader").json["id"]
    body = json.dumps({"peerURLs": urls})
    return client.request("PUT", f"/v2/members/{member}", body, {**ROOT, **JSON}).status


def test_users_roles_and_members_outlive_kills_rebuilds_and_snapshots(make_server):
    server = make_server("--snapshot-count", "5").start()
    client = server.client()
    ask_for_users(client)
    assert peer_urls(client, "http://10.0.0.9:1", "http://10.0.0.8:1") == 204
    assert client.request("PUT", "/v2/keys/al/x", "value=1", AL).status == 201
    before = shown(client)
    assert b'["http://10.0.0.8:1","http://10.0.0.9:1"]' in before[3]
    index = client.request("GET", "/v2/keys/al/x", None, AL).index
    for flags in ((), ("--rebuild-index",)):
        server.kill()
        client = server.start(*flags).client()
        assert shown(client) == before
        assert client.request("GET", "/v2/keys/al/x", None, AL).index == index
    for number in range(6):
        document = json.dumps({"role": f"r{number}"})
        client.request("PUT", f"/v2/auth/roles/r{number}", document, ROOT)
    server.wait_for_log(log_text("wrote a snapshot"))
    before = shown(client)
    assert server.terminate() == 0
    # Of the log only what follows the snapshot is read.
    client = server.start("--rebuild-index").client()
    assert "from snapshot" in server.stderr
    assert shown(client) == before


def test_each_change_is_a_record_and_costs_no_index(client):
    def place() -> tuple[int, int]:
        headers = client.get("/").headers
        return int(headers["x-etcd-index"]), int(headers["x-raft-index"])

    index, pos = place()
    for path, document in (
        ("roles/place", '{"role":"place"}'),
        ("users/place", '{"user":"place","password":"x"}'),
        ("users/place", '{"user":"place","grant":["place"]}'),
    ):
        assert client.request("PUT", f"/v2/auth/{path}", document).status in (200, 201)
    assert client.request("PUT", "/v2/auth/users/place", '{"user":"place"}').status == 400
    assert place() == (index, pos + 3)
    for path in ("roles/place", "users/place"):
        assert client.request("DELETE", f"/v2/auth/{path}").status == 200
    assert place() == (index, pos + 5)


def test_the_log_names_the_user_and_no_passwords_or_hashes(fresh_server, capsys):
    client = fresh_server.client()
    ask_for_users(client)
    client.request("DELETE", "/v2/auth/users/al", None, ROOT)
    assert fresh_server.terminate() == 0
    assert "PUT /v2/auth/enable, asked for by anybody" in fresh_server.stderr
    assert "DELETE /v2/auth/users/al, asked for by user 'root'" in fresh_server.stderr
    assert main.main(["dump", str(fresh_server.data_dir)]) == 0
    dumped = capsys.readouterr().out
    assert '"name":"root"' in dumped.replace(" ", "")
    assert "REDACTED" in dumped
    for received in (dumped, fresh_server.stderr):
        assert "-password" not in received
        assert "$2a$" not in received
    held = b"".join(file.read_bytes() for file in (fresh_server.data_dir / "wal").iterdir())
    assert b"$2a$10$" in held
    assert b"-password" not in held


def test_a_body_beyond_the_limit_is_refused_and_the_next_request_answered(client):
    document = '{"role":"large","permissions":{"kv":{"read":["%s"]}}}'
    largest = document % ("x" * (Users.body_bytes_max - len(document) + 2))
    answer = client.request("PUT", "/v2/auth/roles/large", largest + " ")
    assert (answer.status, answer.json) == (
        *(413, {"message": f"Request body larger than {Users.body_bytes_max} bytes."}),
    )
    assert client.request("PUT", "/v2/auth/roles/large", largest).status == 201
    assert client.request("DELETE", "/v2/auth/roles/large").status == 200


def test_a_body_of_very_many_elements_is_refused(client):
    def body(count: int) -> str:
        return json.dumps({"role": "many", "permissions": {"kv": {"read": ["x"] * count}}})

    answer = client.request("PUT", "/v2/auth/roles/many", body(ELEMENTS_MAX))
    message = f"Request body with more than {ELEMENTS_MAX} elements."
    assert (answer.status, answer.json) == (413, {"message": message})
    assert client.request("PUT", "/v2/auth/roles/many", body(ELEMENTS_MAX - 2)).status == 201
    assert client.request("DELETE", "/v2/auth/roles/many").status == 200


def test_a_list_that_repeats_a_large_role_is_bounded(make_server):
    server = make_server("--max-response-bytes", "200000").start()
    client = server.client()
    role = {"role": "large", "permissions": {"kv": {"read": ["x" * 10_000]}}}
    user = {"user": "u", "password": "p", "roles": ["large"] * 15}
    assert client.request("PUT", "/v2/auth/roles/large", json.dumps(role)).status == 201
    assert client.request("PUT", "/v2/auth/users/u", json.dumps(user)).status == 200
    for target in ("/v2/auth/users/u", "/v2/auth/users"):
        assert client.request("GET", target).body.count(b'"large"') == 15
    user = {"user": "v", "password": "p", "roles": ["large"] * 25}
    assert client.request("PUT", "/v2/auth/users/v", json.dumps(user)).status == 200
    refusal = {"message": "the response is larger than 200000 bytes"}
    for target in ("/v2/auth/users/v", "/v2/auth/users"):
        answer = client.request("GET", target)
        assert (answer.status, answer.json) == (500, refusal)
    assert client.request("GET", "/v2/auth/users/u").status == 200
    assert scrape(client)["kvd_buffered_answer_bytes"] == 0


def test_the_names_of_a_list_are_bounded_too(make_server):
    server = make_server("--max-response-bytes", "2600").start()
    client = server.client()
    for number in range(40):
        body = json.dumps({"role": f"r{number:02}"})
        assert client.request("PUT", f"/v2/auth/roles/r{number:02}", body).status == 201
    answer = client.request("GET", "/v2/auth/roles")
    message = "the names take more than 2600 bytes of memory"
    assert (answer.status, answer.json) == (500, {"message": message})
    assert scrape(client)["kvd_buffered_answer_bytes"] == 0
    assert client.request("DELETE", "/v2/auth/roles/r00").status == 200
    assert client.request("DELETE", "/v2/auth/roles/r01").status == 200
    assert len(client.request("GET", "/v2/auth/roles").json["roles"]) == 39
    assert scrape(client)["kvd_buffered_answer_bytes"] == 0


@pytest.mark.parametrize(
    "target",
    ["/v2/auth/users/", "/v2/auth/users/%00", "/v2/auth/roles/%F0%9F%98%80", "/v2/auth/users/%ff"],
)
def test_any_name_is_looked_for(client, target):
    assert client.request("GET", target).status in (200, 404)


@pytest.mark.parametrize("count", [1_200, 2_000, 100_000])
def test_the_urls_of_a_member_are_bounded_by_the_body(client, count):
    """etcd takes a hundred thousand of them, and shows them to everybody from then on."""
    before = client.request("GET", "/v2/members").json
    (member,) = before["members"]
    target = f"/v2/members/{member['id']}"
    body = json.dumps({"peerURLs": ["http://a:1"] * count}, separators=(",", ":"))
    message = f"Request body larger than {16 << 10} bytes."
    is_within = len(body) <= 16 << 10
    try:
        for method, where in (("POST", "/v2/members"), ("PUT", target)):
            answer = client.request(method, where, body, JSON)
            if not is_within:
                assert (answer.status, answer.json) == (413, {"message": message})
            else:
                assert answer.status == (204 if method == "PUT" else 500)
        (after,) = client.request("GET", "/v2/members").json["members"]
        assert after["peerURLs"] == (["http://a:1"] * count if is_within else member["peerURLs"])
    finally:
        again = json.dumps({"peerURLs": member["peerURLs"]})
        assert client.request("PUT", target, again, JSON).status == 204
    assert client.request("GET", "/v2/members").json == before


def test_another_member_is_refused_and_the_only_one_stays(client):
    (member,) = client.request("GET", "/v2/members").json["members"]
    body = json.dumps({"peerURLs": ["http://10.0.0.1:2380"]})
    answer = client.request("POST", "/v2/members", body, JSON)
    assert (answer.status, answer.json) == (
        *(500, {"message": "kvd is a store of one member: no other one can be added"}),
    )
    own = json.dumps({"peerURLs": ["http://10.0.0.1:2380", *member["peerURLs"]]})
    answer = client.request("POST", "/v2/members", own, JSON)
    assert (answer.status, answer.json) == (409, {"message": "membership: peerURL exists"})
    answer = client.request("DELETE", f"/v2/members/{member['id']}")
    assert (answer.status, answer.json) == (500, {"message": "Internal Server Error"})
    assert client.request("GET", "/v2/members").json["members"] == [member]
    assert client.put("/still", "there").status == 201


def test_a_full_disk_is_reported_and_takes_nothing_along(make_server):
    server = make_server("--enable-failpoints", "--failpoint=walBeforeWrite=error:ENOSPC@3").start()
    client = server.client()

    def put(name: str) -> Answer:
        document = json.dumps({"role": name})
        return client.request("PUT", f"/v2/auth/roles/{name}", document)

    assert put("first").status == 201  # the second frame: the first is the start's
    answer = put("second")
    assert (answer.status, answer.json) == (500, {"message": "no space left on device (wal)"})
    assert client.request("GET", "/v2/auth/roles/second").status == 404
    server.wait_for_log(log_text("disk space is available again"))
    assert put("second").status == 201


def test_nothing_acknowledged_is_lost_by_a_crash(make_server):
    server = make_server("--enable-failpoints", "--failpoint=walAfterSync=crash@5").start()
    client = server.client()
    acknowledged = []
    with contextlib.suppress(ConnectionError):
        for number in range(10):
            document = json.dumps({"role": f"r{number}"})
            client.request("PUT", f"/v2/auth/roles/r{number}", document)
            acknowledged.append(f"r{number}")
    server.wait()
    assert 0 < len(acknowledged) < 10
    server.flags = ()
    roles = server.start().client().request("GET", "/v2/auth/roles").json["roles"]
    held = [role["role"] for role in roles if role["role"] != "root"]
    # The last one was durable, but nobody was told.
    assert held == [*acknowledged, f"r{len(acknowledged)}"]


@pytest.mark.parametrize(
    "row",
    [b"dauthDtrue", b'{"user":"al","roles":["al"]}'],
    ids=["whether users are asked for", "a user"],
)
def test_a_damaged_row_is_noticed_by_the_next_start_and_cured(make_server, row):
    server = make_server().start()
    client = server.client()
    ask_for_users(client)
    before = shown(client)
    assert server.terminate() == 0
    index = server.data_dir / "index" / "data.mdb"
    held = index.read_bytes()
    assert row in held
    index.write_bytes(held.replace(row, row[:-2] + bytes((row[-2] ^ 1,)) + row[-1:]))
    client = server.start().client()
    assert shown(client) == before
