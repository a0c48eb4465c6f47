"""Redirects, unknown routes, methods and CORS."""

from collections.abc import Iterator

import pytest

from tests.support.connections import (
    TEXT,
)
from tests.support.raw import Raw, request
from tests.support.server import Server, running


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/v2/keys/a",
        "/v2/keys//a",
        "/nothing",
        "/version",
        "/v2/members",
        "*",
        "/v2/keys/../..",
    ],
)
def test_options_is_answered_anywhere(raw, target):
    answer = raw.ask("OPTIONS", target)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers.keys() == {"server", "date", "content-length"}
    assert answer.headers["content-length"] == "0"


REDIRECTS = [
    ("/v2/keys//hd", "/v2/keys/hd"),
    ("/v2/keys/./hd", "/v2/keys/hd"),
    ("/v2/keys/a/../hd?x=1", "/v2/keys/hd?x=1"),
    ("/v2/keys/..", "/v2"),
    ("/v2/keys/../stats/store", "/v2/stats/store"),
    ("//v2/keys/x", "/v2/keys/x"),
    ("//", "/"),
    ("/v2/keys/a//", "/v2/keys/a/"),
    ("/v2/keys/a%2F%2Fb", "/v2/keys/a/b"),
    ("/v2/keys/%2e%2e", "/v2"),
    ("//version", "/version"),
    ("/nothing//", "/nothing/"),
    ("http://h", "/"),
    ("http://h?x", "/?x"),
    ("/v2/keys//a?", "/v2/keys/a"),
    ("/v2/keys//a??b=%zz&c", "/v2/keys/a??b=%zz&c"),
    ("/v2/keys//a?x=\xff", "/v2/keys/a?x=%ff"),
    ("/v2/keys//\xff\"<>'#{}%20%3F%25", "/v2/keys/%FF%22%3C%3E%27%23%7B%7D%20%3F%25"),
]


@pytest.mark.parametrize(("target", "location"), REDIRECTS)
def test_a_path_that_is_not_clean_is_redirected(raw, target, location):
    answer = raw.ask("GET", target)
    assert answer.status == 301
    assert answer.headers["location"] == location
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "x-etcd-cluster-id" not in answer.headers
    if "%ff" not in location:
        shown = location.replace("&", "&amp;")
        assert answer.body.decode() == f'<a href="{shown}">Moved Permanently</a>.\n\n'
    for method in ("HEAD", "PUT", "POST", "DELETE", "BREW"):
        other = raw.ask(method, target)
        assert (other.status, other.body) == (301, b"")
        assert other.headers["location"] == location
        assert ("content-type" in other.headers) == (method == "HEAD")


def test_the_text_of_a_redirect_is_escaped_html(raw):
    answer = raw.ask("GET", "/v2/keys//a?x=\xff&\"<'>")
    assert answer.body == (
        b'<a href="/v2/keys/a?x=\xff&amp;&#34;&lt;&#39;&gt;">Moved Permanently</a>.\n\n'
    )


UNKNOWN = ["/", "/v2", "/v2/", "/v2/keysfoo", "/v2/stats", "/v2/stats/", "/v2/stats/store/",
           "/v2/machines/", "/version/", "/health/", "/v2/leader", "/v2/admin", "/v1/keys/x",
           "/members", "/v2/membersx", "/V2/keys", "/favicon.ico"]  # fmt: skip


@pytest.mark.parametrize("target", UNKNOWN)
def test_an_unknown_route_is_not_found(raw, target):
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "BREW", "get"):
        answer = raw.ask(method, target, body=b"" if method in ("PUT", "POST") else None)
        assert answer.status == 404
        assert answer.body == (b"" if method == "HEAD" else b"404 page not found\n")
        assert answer.headers["content-length"] == "19"
        assert answer.headers["content-type"] == TEXT
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "x-etcd-cluster-id" not in answer.headers


def test_an_unknown_route_of_v3_is_not_found_by_its_gateway(raw):
    assert raw.ask("GET", "/v3/none").body == b"Not Found\n"


ALLOWED = {
    "/v2/keys": "HEAD,GET,PUT,POST,DELETE",
    "/v2/keys/": "HEAD,GET,PUT,POST,DELETE",
    "/v2/keys/a/b": "HEAD,GET,PUT,POST,DELETE",
    "/v2/members": "GET,POST,DELETE,PUT",
    "/v2/members/": "GET,POST,DELETE,PUT",
    "/v2/members/abc": "GET,POST,DELETE,PUT",
    "/v2/machines": "GET,HEAD",
    "/v2/stats/store": "GET",
    "/v2/stats/self": "GET",
    "/v2/stats/leader": "GET",
    "/version": "GET",
    "/health": "GET",
}


@pytest.mark.parametrize("target", ALLOWED)
def test_other_methods_are_not_allowed(raw, target):
    methods = {"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "TRACE", "BREW", "get", "Put"}
    for method in sorted(methods - set(ALLOWED[target].split(","))):
        answer = raw.ask(method, target)
        assert answer.status == 405, method
        assert answer.headers["allow"] == ALLOWED[target]
        assert answer.headers["content-type"] == TEXT
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-length"] == "19"
        assert answer.body == (b"" if method == "HEAD" else b"Method Not Allowed\n")
        assert "x-etcd-index" not in answer.headers


CORS = ["access-control-allow-methods", "access-control-allow-origin",
        "access-control-allow-headers"]  # fmt: skip
ANYWHERE = [
    request(method, target, "Origin: http://a:80")
    for method in ("GET", "OPTIONS")
    for target in ("/v2/keys/", "/v2/keys/none", "/v2/keys/?wait=x", "/version", "/x", "/v2//keys")
]


def test_cors_is_off_unless_asked_for(raw):
    for sent in ANYWHERE:
        assert not set(CORS) & raw.send(sent).answer().headers.keys()


def test_cors_for_all_origins(make_server):
    server = make_server("--cors", "*").start()
    with Raw(server.port) as raw:
        for sent in [*ANYWHERE, *(sent.replace(b"Origin", b"X") for sent in ANYWHERE)]:
            headers = raw.send(sent).answer().headers
            assert [headers[name] for name in CORS] == [
                "POST, GET, OPTIONS, PUT, DELETE",
                "*",
                "accept, content-type, authorization",
            ]
        raw.send(request("GET", "/v2/keys/w?wait=true"))
        assert raw.head().headers["access-control-allow-origin"] == "*"


def test_cors_for_some(make_server):
    server = make_server("--cors", "http://a:80,https://b").start()
    with Raw(server.port) as raw:
        for sent in ANYWHERE:
            headers = raw.send(sent).answer().headers
            assert headers["access-control-allow-origin"] == "http://a:80"
            assert headers["vary"] == "Origin"
            for other in (b"http://a", b"http://c", b"HTTP://a:80", b"*", b"null"):
                answer = raw.send(sent.replace(b"http://a:80", other)).answer()
                assert not set(CORS) & answer.headers.keys()
                assert answer.headers["vary"] == "Origin"
            headers = raw.send(sent.replace(b"Origin", b"X")).answer().headers
            assert not set(CORS) & headers.keys()
            assert headers["vary"] == "Origin"


@pytest.fixture(scope="module")
def cors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from running(Server(tmp_path_factory.mktemp("data"), "--cors", "http://a:80"))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (request("GET", "/version", "Expect: something"), 417),
        (request("GET", "/version", f"X: {'x' * 70_000}"), 431),
        (request("GET", "/version", host="evil.example"), 421),
        (request("PUT", "/v2/keys/a", "Origin: http://c", body=b"value=1"), 403),
        (request("GET", f"/version?{'&' * 1000}"), 400),
        (request("PUT", "/v2/auth/roles/x", body=b"x" * (300 << 10)), 413),
    ],
    ids=["line", "host", "expect", "head", "foreign host", "page", "parameters", "body"],
)
def test_with_cors_what_http_refuses_varies_too(cors, sent, status):
    with Raw(cors.port) as raw:
        answer = raw.send(sent).answer()
        assert (answer.status, answer.headers["vary"]) == (status, "Origin")
