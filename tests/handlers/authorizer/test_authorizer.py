"""kvd/handlers/authorizer.py, over HTTP: users, their credentials, and changes to them.

What is allowed to whom, by which pattern, is in the recorded scenarios `access` of
tests/conformance, and in tests/v2/documents/test_auth.py.
"""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from kvd.http.peer import Peer
from tests.support.certs import Authority, client_context
from tests.support.guarded import AL, DENIED, ROOT, ask_for_users, basic
from tests.support.log_texts import log_text
from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, Server, running


def test_a_refusal_has_etcds_form(client):
    answer = client.request("GET", "/v2/keys/al/x")
    assert (answer.status, answer.json) == (401, DENIED)
    assert answer.headers["x-etcd-index"] == "0"
    assert "x-etcd-cluster-id" in answer.headers
    assert not {"www-authenticate", "x-raft-index", "x-raft-term"} & answer.headers.keys()
    head = client.request("HEAD", "/v2/keys/al/x")
    assert (head.status, head.body) == (401, b"")


def test_every_kind_of_request_reaches_allowed_users(client):
    def ask(method: str, target: str, body: str | None = None) -> int:
        return client.request(method, f"/v2/keys/al{target}", body, AL).status

    assert ask("PUT", "/a", "value=1") == 201
    assert ask("GET", "/a") == 200
    assert ask("GET", "/none") == 404
    assert ask("POST", "/q", "value=1") == 201
    assert ask("PUT", "/a", "value=2&prevValue=0") == 412
    assert ask("GET", "/a?wait=true&waitIndex=1") == 200
    assert ask("DELETE", "/?recursive=true") == 200
    assert client.request("PUT", "/v2/keys/other", "value=1", AL).status == 401
    assert client.request("GET", "/v2/keys/other", None, ROOT).status == 404


def test_what_is_wrong_with_a_request_comes_before_its_user(client):
    for headers in ({}, AL, basic("al", "wrong")):
        answer = client.request("GET", "/v2/keys/other?waitIndex=x", None, headers)
        assert answer.json["errorCode"] == 203


def test_many_parameters_are_parsed_for_allowed_users(client):
    query = "&".join(f"long-parameter-{n}={n}" for n in range(100))
    assert client.request("GET", f"/v2/keys/al?{query}").status == 401
    assert client.request("GET", f"/v2/keys/al?{query}", None, ROOT).status == 404
    answer = client.request("GET", f"/v2/keys/al?{query}&recursive=x", None, ROOT)
    assert (answer.status, answer.json["errorCode"]) == (400, 209)


def test_of_several_headers_the_first_counts(server):
    with Raw(server.port) as raw:
        lines = [f"Authorization: {h['Authorization']}" for h in (AL, basic("al", "wrong"))]
        assert raw.ask("GET", "/v2/keys/al/none", *lines).status == 404
        assert raw.ask("GET", "/v2/keys/al/none", *reversed(lines)).status == 401


def test_pipelined_requests_are_answered_in_order_though_a_password_is_checked(server):
    other = basic("al", "al-passworD")["Authorization"]
    fresh = basic("root", "root-password")["Authorization"]
    with Raw(server.port) as raw:
        raw.send(
            request("GET", "/v2/keys/al/x", f"Authorization: {other}"),
            request("PUT", "/v2/keys/al/p", f"Authorization: {fresh}", body=b"value=1"),
            request("GET", "/v2/keys/al/p", f"Authorization: {AL['Authorization']}"),
            request("GET", "/v2/keys/al/p"),
            request("GET", "/version"),
        )
        statuses = [raw.answer().status for _ in range(5)]
    assert statuses == [401, 201, 200, 401, 200]


def test_others_are_answered_while_passwords_are_checked(server):
    with contextlib.ExitStack() as stack:
        guessing = [stack.enter_context(Raw(server.port)) for _ in range(8)]
        for number, raw in enumerate(guessing):
            wrong = basic("al", f"guess {number}")["Authorization"]
            raw.send(request("GET", "/v2/keys/al/x", f"Authorization: {wrong}"))
        client = server.client()
        client.request("GET", "/v2/keys/al/none", None, AL)
        for _ in range(20):
            assert client.request("GET", "/v2/keys/al/none", None, AL).status == 404
        assert [raw.answer().status for raw in guessing] == [401] * 8


def test_a_client_that_goes_while_its_password_is_checked_is_forgotten(server):
    wrong = basic("al", "gone")["Authorization"]
    with Raw(server.port) as raw:
        raw.send(request("PUT", "/v2/keys/al/gone", f"Authorization: {wrong}", body=b"value=1"))
    client = server.client()
    assert client.request("GET", "/v2/keys/al/gone", None, AL).status == 404


def test_everything_else_needs_no_user(client):
    for target in ("/version", "/health", "/v2/machines", "/v2/members", "/v2/members/leader"):
        assert client.request("GET", target, None, basic("no", "body")).status == 200
    for target in ("/v2/stats/store", "/v2/stats/self", "/v2/stats/leader", "/v2/auth/enable"):
        assert client.request("GET", target).status == 200
    assert client.request("OPTIONS", "/v2/keys/al/x").status == 200


def test_only_root_administers(client):
    for method, target, status in (
        ("GET", "/v2/auth/users", 200),
        ("PUT", "/v2/auth/users/x", 400),
        ("GET", "/v2/auth/roles/al", 200),
        ("DELETE", "/v2/auth/roles/none", 404),
        ("PUT", "/v2/auth/enable", 409),
        ("POST", "/v2/members", 415),
        ("DELETE", "/v2/members/1", 404),
    ):
        for headers in ({}, AL, {"Authorization": "junk"}):
            answer = client.request(method, target, "nonsense", headers)
            assert (answer.status, answer.json) == (401, {"message": "Insufficient credentials"})
            assert "x-etcd-cluster-id" not in answer.headers
            assert "www-authenticate" not in answer.headers
        answer = client.request(method, target, "nonsense", ROOT)
        assert (answer.status, "x-etcd-cluster-id" in answer.headers) == (status, True)


def test_what_changes_of_a_user_counts_for_the_next_request(guarded):
    client = guarded.client()

    def al(headers: dict[str, str] = AL) -> int:
        return client.request("GET", "/v2/keys/al/none", None, headers).status

    def change(path: str, document: str, method: str = "PUT") -> None:
        assert client.request(method, f"/v2/auth/{path}", document, ROOT).status == 200

    assert al() == 404
    change("users/al", '{"user":"al","password":"new"}')
    assert (al(), al(basic("al", "new"))) == (401, 404)
    change("users/al", '{"user":"al","revoke":["al"]}')
    assert al(basic("al", "new")) == 401
    change("users/al", '{"user":"al","grant":["al"]}')
    change("roles/al", '{"role":"al","revoke":{"kv":{"read":["/al/*"]}}}')
    assert al(basic("al", "new")) == 401
    change("roles/guest", '{"role":"guest","grant":{"kv":{"read":["*"]}}}')
    assert (al({}), al(basic("al", "new"))) == (404, 401)
    change("users/al", "", "DELETE")
    assert al(basic("al", "new")) == 401
    change("enable", "", "DELETE")
    assert (al(), al({"Authorization": "junk"})) == (404, 404)


def test_a_stop_answers_those_whose_password_is_being_checked(guarded):
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(Raw(guarded.port)) for _ in range(5)]
        for number, raw in enumerate(asking):
            name, password = ("root", "root-password") if number < 3 else ("al", "al-password")
            line = f"Authorization: {basic(name, password)['Authorization']}"
            raw.send(request("PUT", f"/v2/keys/al/{number}", line, body=b"value=1"))
        status = threading.Thread(target=guarded.terminate)
        status.start()
        statuses = [raw.answer().status for raw in asking]
        status.join(PATIENCE_S)
    assert statuses == [201] * 5
    assert guarded.start().client().request("GET", "/v2/keys/al/4", None, AL).status == 200


def test_a_stop_waits_for_no_queue_of_guesses_at_passwords(guarded):
    guesses = 700
    with contextlib.ExitStack() as stack:
        asking = [stack.enter_context(Raw(guarded.port)) for _ in range(guesses)]
        for number, raw in enumerate(asking):
            line = f"Authorization: {basic('al', f'guess {number}')['Authorization']}"
            raw.send(request("GET", "/v2/keys/al/x", line))
        # Much longer than a stop may take, and so than the server would wait for itself.
        assert guarded.terminate() == 0
        answers = [raw.answer() for raw in asking]
    assert {answer.status for answer in answers} <= {401, 500}
    late = next(answer for answer in reversed(answers) if answer.status == 500)
    assert late.json["cause"] == "too many passwords are being checked"
    assert log_text("without a clean mark") not in guarded.stderr


def test_passwords_in_the_open_are_warned_of_once_they_are_asked_for(make_server):
    server = make_server(listen="http://0.0.0.0:0").start()
    client = server.client(f"http://127.0.0.1:{server.port}")
    assert "is plain HTTP" not in server.stderr
    ask_for_users(client)
    client.request("PUT", "/v2/auth/roles/x", '{"role":"x"}', ROOT)
    server.wait_for_log(
        f"auth is enabled but {server.url} is plain HTTP: passwords are sent unencrypted"
    )
    server.terminate()
    assert server.stderr.count("is plain HTTP") == 1
    server.start().terminate()
    assert server.stderr.count("is plain HTTP") == 2


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=[True, False], ids=["asked for", "not asked for"])
def secured(
    request: pytest.FixtureRequest,
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    pair = authority.sign("server", "127.0.0.1")
    flags = ["--cert-file", str(pair.cert), "--key-file", str(pair.key)]
    flags += ["--trusted-ca-file", str(authority.cert)]
    flags += ["--client-cert-auth"] * request.param
    server = Server(tmp_path_factory.mktemp("data"), *flags, listen="https://127.0.0.1:0")
    for started in running(server):
        tls = client_context(authority.cert, authority.sign("nobody"))
        ask_for_users(started.client(tls=tls))
        yield started


def test_without_a_header_the_certificate_names_the_user(secured, authority):
    counts = "--client-cert-auth" in secured.flags

    def status(name: str, target: str, headers: dict[str, str] | None = None) -> int:
        client = secured.client(tls=client_context(authority.cert, authority.sign(name)))
        answer = client.request("GET", target, None, headers or {})
        client.close()
        return answer.status

    let_in, known = (404, 200) if counts else (401, 401)
    assert status("al", "/v2/keys/al/none") == let_in
    assert status("al", "/v2/keys/other") == 401
    assert status("root", "/v2/auth/users") == known
    assert status("al", "/v2/auth/users") == 401
    # A header says more than a certificate, and nobody is a guest.
    assert status("root", "/v2/auth/users", basic("root", "wrong")) == 401
    assert status("root", "/v2/auth/users", AL) == 401
    assert status("nobody", "/v2/keys/al/none", AL) == 404
    assert status("nobody", "/v2/keys/al/none") == 401


def test_a_user_with_the_right_password_is_served_among_guesses(guarded):
    client = guarded.client()
    assert client.request("GET", "/v2/keys/al/x", None, AL).status == 404
    with contextlib.ExitStack() as stack:
        guessing = [stack.enter_context(Raw(guarded.port)) for _ in range(300)]
        for number, raw in enumerate(guessing):
            line = f"Authorization: {basic('al', f'guess {number}')['Authorization']}"
            raw.send(request("GET", "/v2/keys/al/x", line))
        # What users and roles are changes, and so it is not only remembered who was right.
        assert client.request("PUT", "/v2/auth/roles/new", '{"role":"new"}', ROOT).status == 201
        for _ in range(5):
            assert client.request("GET", "/v2/keys/al/x", None, AL).status == 404


@pytest.mark.parametrize(
    ("address", "other", "are_one"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:0:1:2", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("2001:db8:1:2::1", "10.0.0.1", False),
    ],
)
def test_shares_are_those_of_networks(address, other, are_one):
    """Who has one address of IPv6 has 64 bits of them."""
    assert (Peer(address).network == Peer(other).network) is are_one


def test_after_a_restart_a_user_with_the_right_password_is_served_among_guesses(guarded):
    """No name has succeeded yet, and the guesses are at the same one, from the same address."""
    guarded.stop()
    guarded.start()
    with contextlib.ExitStack() as stack:
        for number in range(1100):
            raw = stack.enter_context(Raw(guarded.port))
            line = f"Authorization: {basic('al', f'guess {number}')['Authorization']}"
            raw.send(request("GET", "/v2/keys/al/x", line))
        client = guarded.client()
        for _ in range(5):
            assert client.request("GET", "/v2/keys/al/x", None, AL).status == 404
