"""Protection against web pages: foreign hosts, and writes from foreign pages."""

import re

import pytest

from kvd.handlers.cross_site import BrowserPolicy, Hosts, hosts_of
from tests.support.certs import Authority, client_context
from tests.support.raw import Raw, request
from tests.support.server import Server

OWN = ("kv.example", "Machine", "localhost", "127.0.0.1")


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("localhost", True),
            ("localhost:2379", True),
            ("LocalHost.", True),
            ("app.localhost:1", True),
            ("127.0.0.1", True),
            ("10.1.2.3:2379", True),
            ("[::1]:2379", True),
            ("[::1]", True),
            ("etcd0:2379", True),
            ("machine", True),
            ("kv.example:443", True),
            ("KV.Example", True),
            ("", True),
            ("evil.example", False),
            ("evil.example:2379", False),
            ("kv.example.evil.example", False),
            ("evilkv.example", False),
            ("localhost.evil.example", False),
            ("evil.example.", False),
            ("127.0.0.1.evil.example", False),
            ("[::1", False),
            ("[::1].evil", False),
            ("[::1].evil.example:80", False),
            ("[::1]x", False),
            ("[evil.example]", False),
            ("localhost:80.evil", False),
            ("localhost:evil", False),
            ("localhost:80:80", False),
            ("localhost:", True),
            ("evil%2e..", False),
            ("evil%2eexample", False),
            ("evil%2Eexample", False),
            ("localhost..", False),
            ("user@localhost", False),
            ("localhost,evil", False),
            ("127.0.0.256", False),
        ],
    )
    def test_a_server_of_this_machine_alone_goes_by_its_own_names(self, host, expected):
        hosts = hosts_of(None, OWN, is_local_only=True)
        assert hosts is not None
        assert hosts.allow(host) is expected

    @pytest.mark.parametrize(
        ("host", "expected"),
        [
            ("good.example", True),
            ("good.example:99", True),
            ("Good.Example", True),
            ("10.0.0.1:2379", True),
            ("127.0.0.1", False),
            ("localhost", False),
            ("", False),
        ],
    )
    def test_a_list_is_taken_at_its_word(self, host, expected):
        hosts = hosts_of(("good.EXAMPLE", "10.0.0.1"), OWN, is_local_only=True)
        assert hosts is not None
        assert hosts.allow(host) is expected

    @pytest.mark.parametrize("whitelist", [(), ("*",), ("a", "*")], ids=str)
    def test_any_host_can_be_allowed(self, whitelist):
        assert hosts_of(whitelist, OWN, is_local_only=True) is None

    def test_without_a_list_a_server_that_others_reach_takes_any_host(self):
        assert hosts_of(None, OWN, is_local_only=False) is None


PAGES = [
    # Programs and old browsers on their own page.
    ({}, True),
    ({"Origin": "http://kv:1"}, True),
    ({"Origin": "https://KV:1"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "http://kv:1"}, True),
    # A person who types the address; a bookmark.
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    # Another port, another subdomain: another page.
    ({"Sec-Fetch-Site": "same-site", "Origin": "http://kv:2"}, False),
    ({"Origin": "http://kv:2"}, False),
    ({"Origin": "http://kv"}, False),
    ({"Origin": "http://evil.example"}, False),
    # A file, a sandbox.
    ({"Origin": "null"}, False),
    ({"Origin": ""}, False),
]


class TestPages:
    @pytest.mark.parametrize(("headers", "expected"), PAGES, ids=str)
    @pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
    def test_a_foreign_page_writes_nothing(self, method, headers, expected):
        policy = BrowserPolicy(None, ())
        refusal = policy.refusal(method, {"Host": "kv:1", **headers}, is_secured=False)
        assert (refusal is None) is expected

    @pytest.mark.parametrize(("headers", "_expected"), PAGES, ids=str)
    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    def test_what_changes_nothing_may_come_from_any_page(self, method, headers, _expected):
        assert BrowserPolicy(None, ()).refusal(method, headers, is_secured=False) is None

    def test_pages_that_cors_names_may_write(self):
        policy = BrowserPolicy(None, ("http://ui.example",))
        named = {"Origin": "http://ui.example", "Sec-Fetch-Site": "cross-site"}
        other = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
        assert policy.refusal("PUT", named, is_secured=False) is None
        assert policy.refusal("PUT", other, is_secured=False) is not None
        assert BrowserPolicy(None, ("*",)).refusal("PUT", other, is_secured=False) is None

    @pytest.mark.parametrize(("headers", "expected"), PAGES, ids=str)
    def test_only_headers_without_a_page_are_usual(self, headers, expected):
        usual = BrowserPolicy(None, ()).is_usual({"Host": "kv:1", **headers})
        assert usual is not bool(headers)
        assert not usual or expected


@pytest.mark.parametrize(
    ("authority", "headers", "expected"),
    [
        ("kv:1", {"Host": "kv:1"}, True),
        ("KV:1", {"Host": "kv:1"}, True),
        ("kv:1", {}, True),
        ("kv", {"Host": "kv:1"}, False),
        ("evil.example", {"Host": "kv:1"}, False),
        ("kv:1", {"Host": "evil.example"}, False),
        ("evil.example", {}, False),
        ("x@kv:1", {}, False),
        ("", {"Host": "kv:1"}, False),
    ],
)
@pytest.mark.parametrize("is_secured", [False, True])
def test_a_target_names_the_host_of_the_request(authority, headers, expected, is_secured):
    policy = BrowserPolicy(Hosts(frozenset(["kv"]), takes_local=False), ())
    refusal = policy.refusal("GET", headers, is_secured=is_secured, authority=authority)
    # Over TLS without a Host header there is nothing that could differ.
    assert (refusal is None) is (expected or (is_secured and not headers))


@pytest.mark.parametrize("target", ["/v2/keys/absolute", "/version"])
def test_a_target_of_another_host_is_refused(server, target):
    sent = request("PUT", f"http://evil.example{target}", body=b"value=1")
    assert answered(server, sent).status == 421
    sent = request("GET", f"http://evil.example{target}")
    assert answered(server, sent).status == 421
    assert answered(server, request("GET", "http://h/v2/keys/absolute")).status == 404


def test_of_a_long_name_only_the_beginning_is_shown():
    policy = BrowserPolicy(Hosts(frozenset(["kv"]), takes_local=False), ())
    for headers in ({"Host": "x" * 60_000}, {"Host": "kv", "Origin": "http://" + "x" * 60_000}):
        refusal = policy.refusal("PUT", headers, is_secured=False)
        assert refusal is not None
        assert "xxx... " in refusal[1]
        assert len(refusal[1]) < 400


def test_headers_of_a_foreign_host_are_not_usual():
    policy = BrowserPolicy(Hosts(frozenset(["a"]), takes_local=False), ())
    assert policy.is_usual({"Host": "a"})
    assert not policy.is_usual({"Host": "b"})
    assert BrowserPolicy(None, ()).is_usual({"Host": "b"})


# What the server does about it.

FOREIGN = request("PUT", "/v2/keys/a", host="evil.example", body=b"value=1")


def answered(server: Server, sent: bytes, method: str = "GET"):
    with Raw(server.port) as raw:
        return raw.send(sent).answer(method)


@pytest.mark.parametrize("target", ["/v2/keys/a", "/version", "/nothing", "/v2/keys//a"])
@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
def test_a_foreign_host_gets_421_whatever_it_asks(server, method, target):
    answer = answered(server, request(method, target, host="evil.example:2379"), method)
    assert answer.status == 421
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "x-etcd-cluster-id" not in answer.headers
    assert b"evil.example is not a host of this server; see kvd --host-whitelist" in answer.body


def test_nothing_is_written_for_a_foreign_host_or_page(fresh_server):
    client = fresh_server.client()
    client.put("/kept", "1")
    page = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert client.request("PUT", "/v2/keys/kept", "value=2", page).status == 403
    assert fresh_server.client().request("DELETE", "/v2/keys/kept", None, page).status == 403
    assert fresh_server.client().request("POST", "/v2/members", "{}", page).status == 403
    assert answered(fresh_server, FOREIGN).status == 421
    assert fresh_server.client().get("/kept").json["node"] == {
        "key": "/kept",
        "value": "1",
        "modifiedIndex": 2,
        "createdIndex": 2,
    }
    # What a page may not read it may ask for: its browser does not show it the answer.
    assert fresh_server.client().request("GET", "/v2/keys/kept", None, page).status == 200
    fresh_server.wait_for_log("was refused")
    (line,) = [line for line in fresh_server.stderr.splitlines() if "was refused" in line]
    assert re.search(r"a request of 127\.0\.0\.1 was refused: a page of http://evil\.ex", line)


def test_what_was_refused_once_is_refused_again(server):
    # The second time its headers are found among those that were parsed before.
    for _ in range(3):
        assert answered(server, FOREIGN).status == 421
    assert server.client().get("/a").status == 404


def test_a_page_of_the_server_itself_may_write(server):
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert server.client().request("PUT", "/v2/keys/own", "value=1", own).status in (200, 201)


def test_cors_lets_the_pages_that_it_names_write(make_server):
    server = make_server("--cors", "http://ui.example:80").start()
    named = {"Origin": "http://ui.example:80", "Sec-Fetch-Site": "cross-site"}
    answer = server.client().request("PUT", "/v2/keys/a", "value=1", named)
    assert answer.status == 201
    assert answer.headers["access-control-allow-origin"] == "http://ui.example:80"
    other = {"Origin": "http://evil.example"}
    assert server.client().request("PUT", "/v2/keys/a", "value=1", other).status == 403


def test_a_list_of_hosts_can_be_given(make_server):
    server = make_server("--host-whitelist", "good.example").start()
    sent = {host: request("GET", "/version", host=host) for host in ("good.example:1", "127.0.0.1")}
    assert answered(server, sent["good.example:1"]).status == 200
    assert answered(server, sent["127.0.0.1"]).status == 421
    assert answered(server, b"GET /version HTTP/1.0\r\n\r\n").status == 421


def test_with_tls_any_host_is_taken(make_server, tmp_path):
    authority = Authority(tmp_path / "authority")
    pair = authority.sign("server", "127.0.0.1")
    argv = ("--cert-file", str(pair.cert), "--key-file", str(pair.key), "--host-whitelist", "x")
    server = make_server(*argv, listen="https://127.0.0.1:0").start()
    client = server.client(tls=client_context(authority.cert))
    assert client.put("/a", "1").status == 201
    assert client.get("/a").json["node"]["value"] == "1"
