"""`/new`: tokens for etcd members that find each other through kvd. Real members do it in
tests/clients/test_discovery.py."""

import re
import threading

import pytest

from kvd.config.config import Config
from kvd.config.load import ConfigError, parse
from tests.support.guarded import ROOT, ask_for_users
from tests.support.memory import rejected
from tests.support.server import Answer, Client

REGISTRY = "/_etcd/registry"


def new(client: Client, query: str = "", **headers: str) -> Answer:
    return client.request("GET", f"/new{query}", headers=headers)


def token_of(answer: Answer) -> str:
    """The key of the token in an answer."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    found = re.fullmatch(rf"http://[^/]+/v2/keys({REGISTRY}/[0-9a-f]{{32}})", answer.body.decode())
    assert found is not None, answer.body
    return found[1]


@pytest.mark.parametrize(("query", "size"), [("", 3), ("?size=1", 1), ("?size=9999&x=y", 9999)])
def test_a_token_is_made(make_server, query, size):
    server = make_server("--discovery").start()
    client = server.client()
    answer = new(client, query)
    token = token_of(answer)
    assert answer.body.decode().startswith(server.url + "/v2/keys/")
    assert client.get(f"{token}/_config/size").json["node"]["value"] == str(size)
    node = client.get(token).json["node"]
    assert "nodes" not in node
    assert 604_790 <= node["ttl"] <= 604_800
    assert token_of(new(client)) != token


def test_it_survives_a_crash(make_server):
    server = make_server("--discovery").start()
    token = token_of(new(server.client()))
    server.kill()
    assert server.start().client().get(f"{token}/_config/size").status == 200


def test_the_url_is_the_advertised_one(make_server):
    flags = ("--advertise-client-urls", "http://kv.example:1234,http://other:1", "--discovery")
    answer = new(make_server(*flags, "--discovery-ttl=100").start().client())
    assert answer.body.startswith(b"http://kv.example:1234/v2/keys/_etcd/registry/")


@pytest.mark.parametrize(
    "query",
    [
        *(
            "?size=0000000019999",
            f"?size=000000001{'0' * 5000}",
            f"?size={'9' * 5000}",
            "?size=%C2%B2",
        ),
        *("?size=0", "?size=10000", "?size=", "?size=x", "?size=-1", "?size=1.5", "?size=%D9%A1"),
    ],
)
def test_a_bad_size_is_refused(make_server, query):
    client = make_server("--discovery").start().client()
    answer = new(client, query)
    assert (answer.status, answer.body) == (400, b"size: a number from 1 to 9999 is wanted\n")
    assert client.get(REGISTRY).status == 404


def test_without_the_flag_there_is_no_such_path(client):
    answer = new(client)
    assert (answer.status, answer.body) == (404, b"404 page not found\n")


def test_only_get_makes_one(make_server):
    client = make_server("--discovery").start().client()
    for method in ("HEAD", "PUT", "POST", "DELETE"):
        assert client.request(method, "/new").status == 405
    assert client.get(REGISTRY).status == 404


def test_there_are_no_more_than_there_may_be(make_server):
    server = make_server("--discovery", "--discovery-max", "5").start()
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(new(server.client()))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [200] * 5 + [503] * 7
    client = server.client()
    assert new(client).body == b"there are too many tokens\n"
    assert rejected(client, "too_many_tokens") == 8
    names = client.get(REGISTRY, keysOnly="true").json["node"]["nodes"]
    assert len(names) == 5
    client.delete(names[0]["key"], recursive="true")
    assert new(client).status == 200


def test_a_token_ends_by_itself(make_server):
    server = make_server("--discovery", "--discovery-ttl", "1").start()
    client = server.client()
    index = client.get("/").index
    token = token_of(new(client))
    events = [
        client.get(token, wait="true", waitIndex=index + 1).json["action"],
        client.get(token, wait="true", waitIndex=index + 2).json["action"],
    ]
    assert events == ["create", "expire"]
    assert client.get(token).status == 404


def test_a_foreign_page_cannot_have_one_made(make_server):
    client = make_server("--discovery").start().client()
    foreign = {"Origin": "http://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    assert new(client, **foreign).status == 403
    assert client.get(REGISTRY).status == 404
    assert new(client, **{"Sec-Fetch-Site": "same-origin"}).status == 200


def test_it_is_made_as_a_guest_might_make_it(make_server):
    client = make_server("--discovery").start().client()
    ask_for_users(client)
    refused = new(client)
    assert refused.status == 401
    assert b"Insufficient credentials" in refused.body
    # Whoever asks for it: who may write is not found out here.
    assert new(client, **ROOT).status == 401
    granted = '{"role":"guest","grant":{"kv":{"read":[],"write":["/_etcd/registry/*"]}}}'
    assert client.request("PUT", "/v2/auth/roles/guest", granted, ROOT).status == 200
    token = token_of(new(client))
    size = client.request("GET", f"/v2/keys{token}/_config/size", headers=ROOT)
    assert size.json["node"]["value"] == "3"


# The flag, whose name has another meaning in etcd


def config(*argv: str, environ: dict[str, str] | None = None) -> Config:
    found = parse(argv, environ or {})
    assert isinstance(found, Config)
    return found


def test_the_flag_is_a_switch():
    assert not config().discovery
    assert not config("--discovery=false").discovery
    assert not config("--discovery=").discovery
    assert not config(environ={"ETCD_DISCOVERY": ""}).discovery
    assert config("--discovery").discovery
    assert config("--discovery", "--name", "x").discovery
    assert config("--discovery", "true").discovery
    assert config(environ={"KVD_DISCOVERY": "true"}).discovery


@pytest.mark.parametrize(
    ("argv", "environ"),
    [
        (["--discovery", "https://discovery.etcd.io/abc"], {}),
        (["--discovery=https://discovery.etcd.io/abc"], {}),
        ([], {"ETCD_DISCOVERY": "https://discovery.etcd.io/abc"}),
    ],
    ids=["two words", "one word", "variable"],
)
def test_etcds_meaning_of_it_is_refused_with_the_reason(argv, environ):
    with pytest.raises(ConfigError, match="joins no cluster"):
        config(*argv, environ=environ)


def test_it_is_one_of_the_extras():
    with pytest.raises(ConfigError, match="--discovery needs --extras"):
        config("--discovery", "--extras=false")
