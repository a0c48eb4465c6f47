"""Bodies of requests: none is read before its sender may write."""

import pytest

from tests.support.guarded import AL, DENIED, ROOT, ask_for_users, basic
from tests.support.raw import Raw, request


def test_a_body_that_began_before_users_were_asked_for_is_a_guests(fresh_server):
    client = fresh_server.client()
    with Raw(fresh_server.port) as raw:
        raw.send(
            request(
                "PUT", "/v2/keys/al/a", f"Authorization: {AL['Authorization']}", body=b"value=1"
            )[:-1]
        )
        client.request("GET", "/version")
        ask_for_users(client)
        assert raw.send(b"1").answer().json == DENIED


LARGE = ("Content-Type: application/x-www-form-urlencoded", f"Content-Length: {10 << 20}")


@pytest.mark.parametrize(
    "given", [{}, basic("al", "guess"), basic("none", "x"), {"Authorization": "junk"}]
)
@pytest.mark.parametrize(
    "target", ["PUT /v2/keys/al/x", "POST /v2/keys/al", "PUT /v2/auth/users/x"]
)
def test_users_that_may_not_write_are_refused_before_the_body_comes(server, given, target):
    lines = [f"{name}: {value}" for name, value in given.items()]
    with Raw(server.port) as raw:
        answer = raw.send(request(*target.split(), *lines, *LARGE)).answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")


def test_nothing_is_parsed_for_users_that_may_not_write(client):
    for given in ({}, basic("al", "guess")):
        answer = client.request("PUT", "/v2/keys/al/x", "ttl=none&value=%zz;", given)
        assert answer.json == DENIED
    assert client.request("PUT", "/v2/keys/al/x", "ttl=none", AL).json["errorCode"] == 202


@pytest.mark.parametrize("given", [basic("al", "another guess"), {}])
def test_permission_to_send_a_body_is_given_after_the_password_is_checked(server, given):
    wait = "Expect: 100-continue"
    with Raw(server.port) as raw:
        lines = [f"{name}: {value}" for name, value in given.items()]
        head = request("PUT", "/v2/keys/al/e", *lines, wait, body=b"value=1")[:-7]
        answer = raw.send(head).answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
    with Raw(server.port) as raw:
        line = f"Authorization: {AL['Authorization']}"
        raw.send(request("PUT", "/v2/keys/al/e", line, wait, body=b"value=1")[:-7])
        assert raw.answer().status == 100
        assert raw.send(b"value=1").answer().status in (200, 201)


def test_a_short_body_of_a_refused_request_is_passed_over(server):
    line = f"Authorization: {AL['Authorization']}"
    with Raw(server.port) as raw:
        refused = request("PUT", "/v2/keys/other", line, body=b"value=" + b"v" * 200_000)
        assert raw.send(refused[:100_000]).answer().json == DENIED
        raw.send(refused[100_000:], request("GET", "/v2/keys/al/none", line))
        assert raw.answer().status == 404


def test_what_is_recursive_is_judged_by_the_form_too(client):
    body = "recursive=true&value=1"
    assert client.request("PUT", "/v2/keys/al/r", body, AL).status == 201
    document = '{"role":"exact","permissions":{"kv":{"write":["/exact"]}}}'
    assert client.request("PUT", "/v2/auth/roles/exact", document, ROOT).status == 201
    document = '{"user":"ex","password":"x","roles":["exact"]}'
    assert client.request("PUT", "/v2/auth/users/ex", document, ROOT).status < 300
    assert client.request("PUT", "/v2/keys/exact", body, basic("ex", "x")).json == DENIED
    assert client.request("PUT", "/v2/keys/exact", "value=1", basic("ex", "x")).status == 201
