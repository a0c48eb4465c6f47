"""kvd/v2/documents/peer_urls.py: the texts are those that etcd 3.4.23 answered."""

import pytest

from kvd.v2.documents.peer_urls import read_urls
from kvd.v2.errors import RouteError

SCHEME = "URL scheme must be http, https, unix, or unixs: {}"
ADDRESS = 'URL address does not have the form "host:port": {}'
PATH = "URL must not contain a path: {}"
PARSE = 'parse "{}": '

REFUSED = {
    "": SCHEME,
    "foo": SCHEME,
    "localhost:2380": SCHEME,
    "ftp://a:1": SCHEME,
    "//a:1": SCHEME,
    "mailto:x": SCHEME,
    "x/y:z": SCHEME,
    "#": SCHEME,
    "?": SCHEME,
    "*": SCHEME,
    "http://127.0.0.1": ADDRESS,
    "http:a:1": ADDRESS,
    "http://": ADDRESS,
    "http:": ADDRESS,
    "http:///x": ADDRESS,
    "http://::1:2": ADDRESS,
    "http://[::1]": ADDRESS,
    "http://a:1:2": ADDRESS,
    "http://a/b:1": ADDRESS,
    "http://a?b:1": ADDRESS,
    "http://a@b@c": ADDRESS,
    "http://\u00e9": ADDRESS,
    "unix:///tmp/x": ADDRESS,
    "unix://x": ADDRESS,
    "http://a:1/": PATH,
    "http://a:1/?x": PATH,
    "http://127.0.0.1:1/path": PATH,
    "://bad": PARSE + "missing protocol scheme",
    "1http://a:1": PARSE + "first path segment in URL cannot contain colon",
    "127.0.0.1:2380": PARSE + "first path segment in URL cannot contain colon",
    "http://a b:1": PARSE + 'invalid character " " in host name',
    "http://a:b": PARSE + 'invalid port ":b" after host',
    "http://a:-1": PARSE + 'invalid port ":-1" after host',
    "http://[::1]x:1": PARSE + 'invalid port "x:1" after host',
    "http://[fe80::1%25en0]:x": PARSE + 'invalid port ":x" after host',
    "http://[::1:1": PARSE + "missing ']' in host",
    "http://user:p w@a:1": PARSE + "net/url: invalid userinfo",
    "%zz": PARSE + 'invalid URL escape "%zz"',
    "http://%zz:1": PARSE + 'invalid URL escape "%zz"',
    "http://a:1/%zz": PARSE + 'invalid URL escape "%zz"',
    "http://a%20b:1": PARSE + 'invalid URL escape "%20"',
    "http://a%41": PARSE + 'invalid URL escape "%41"',
}


@pytest.mark.parametrize("url", REFUSED)
def test_what_no_server_could_listen_on_is_refused_in_etcds_words(url):
    with pytest.raises(RouteError) as raised:
        read_urls(["http://good:1", url])
    assert raised.value.status == 400
    assert raised.value.message == REFUSED[url].format(url)


def test_a_control_character_is_shown_escaped():
    with pytest.raises(RouteError) as raised:
        read_urls(["http://\1:1"])
    assert raised.value.message == (
        r'parse "http://\x01:1": net/url: invalid control character in URL'
    )


def test_there_must_be_one():
    with pytest.raises(RouteError, match="no valid URLs given"):
        read_urls([])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" http://a:1\n", "http://a:1"),
        ("HTTP://A:1", "http://A:1"),
        ("http://a:", "http://a:"),
        ("http://:1", "http://:1"),
        ("https://[::1]:2380", "https://[::1]:2380"),
        ("http://[fe80::1%25en0]:1", "http://[fe80::1%25en0]:1"),
        ("http://user:pw@a:1", "http://user:pw@a:1"),
        ("http://a:1?x#y", "http://a:1?x#y"),
        ("unix://a:1", "unix://a:1"),
        ("http://%C3%A9:1", "http://%C3%A9:1"),
        ("http://\u00e9:1", "http://%C3%A9:1"),
        ("http://a:1#", "http://a:1"),
        ("http://a:99999", "http://a:99999"),
    ],
)
def test_what_etcd_takes_is_taken(given, kept):
    assert read_urls([given]) == (kept,)


def test_they_are_sorted():
    assert read_urls(["http://b:1", "http://a:1", "http://b:1"]) == (
        *("http://a:1", "http://b:1", "http://b:1"),
    )
