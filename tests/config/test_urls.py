"""URLs in settings: listened on, advertised, refused."""

import pytest

from kvd.config.load import ConfigError, ListenUrl, parse
from tests.support.configuration import config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:4001", [ListenUrl("127.0.0.1", 4001)]),
        ("http://localhost:0", [ListenUrl("localhost", 0)]),
        ("http://[::1]:2379", [ListenUrl("::1", 2379)]),
        ("HTTP://0.0.0.0:2379", [ListenUrl("0.0.0.0", 2379)]),
        (
            "http://127.0.0.1:2379, http://127.0.0.1:4001",
            [ListenUrl("127.0.0.1", 2379), ListenUrl("127.0.0.1", 4001)],
        ),
        ("http://127.0.0.1:0,http://127.0.0.1:0", [ListenUrl("127.0.0.1", 0)] * 2),
        ("unix:///run/kvd.sock", [ListenUrl("/run/kvd.sock", scheme="unix")]),
        ("unix://kvd.sock", [ListenUrl("kvd.sock", scheme="unix")]),
    ],
)
def test_listen_urls(text, expected):
    assert config("--listen-client-urls", text).listen == tuple(expected)


def test_a_listen_url_is_written_as_it_is_read():
    for text in ("http://127.0.0.1:2379", "http://[::1]:0", "http://localhost:1", "unix:///a/b"):
        assert [str(url) for url in config("--listen-client-urls", text).listen] == [text]


def test_clients_receive_the_urls_listened_on_unless_others_are_advertised():
    listen = ["--listen-client-urls", "http://0.0.0.0:2379,http://[::1]:4001"]
    assert config(*listen).advertise == ("http://0.0.0.0:2379", "http://[::1]:4001")
    advertise = ["--advertise-client-urls", "https://kv.example:443, http://10.0.0.1:2379"]
    assert config(*listen, *advertise).advertise == (
        "https://kv.example:443",
        "http://10.0.0.1:2379",
    )


def test_more_urls_to_listen_on_are_added():
    parsed = config("--listen-client-http-urls", "http://127.0.0.1:8080")
    assert parsed.listen == (ListenUrl("127.0.0.1", 2379), ListenUrl("127.0.0.1", 8080))


@pytest.mark.parametrize("url", ["http://0.0.0.0:2379", "http://[::]:2379"])
def test_urls_that_lead_clients_to_themselves_are_warned_of(url):
    (warning,) = config("--listen-client-urls", url).warnings
    assert warning == (
        f"clients are told URLs that lead to themselves, see --advertise-client-urls: {url}"
    )
    received = ("--advertise-client-urls", "http://kv.example:2379")
    assert config("--listen-client-urls", url, *received).warnings == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ftp://127.0.0.1:2379", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("unix://", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("127.0.0.1:2379", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("http://127.0.0.1", "a URL needs a port"),
        ("http://127.0.0.1:", "a URL needs a port"),
        ("http://127.0.0.1:65536", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("http://127.0.0.1:http", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("http://127.0.0.1:-1", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("http://[::1:2379", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("http://a b:2379", "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"),
        ("http://127.0.0.1:2379/", "a URL must not contain a path"),
        ("http://127.0.0.1:2379/v2", "a URL must not contain a path"),
        ("http://127.0.0.1:2379?x", "a URL must not contain a path"),
        ("http://127.0.0.1:2379#", "a URL must not contain a path"),
        ("http://me@127.0.0.1:2379", "a URL must not contain a user"),
        ("http://:2379", "a URL needs a host (0.0.0.0 or [::] is every address)"),
    ],
)
def test_a_bad_listen_url_is_refused_with_its_reason(text, reason):
    with pytest.raises(ConfigError) as refusal:
        parse(["--listen-client-urls", f"http://127.0.0.1:1,{text}"])
    assert str(refusal.value) == f'--listen-client-urls: {reason}, found "{text}"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--listen-client-urls: expected at least one URL"),
        (
            "http://a:1,,http://b:1",
            '--listen-client-urls: expected a URL beside each comma, found "http://a:1,,http://b:1"',
        ),
        ("unix:///a,unix:///a", '--listen-client-urls: "unix:///a" is there twice'),
        ("http://a:1,http://A:1", '--listen-client-urls: "http://A:1" is there twice'),
    ],
)
def test_a_bad_list_of_urls_is_refused(text, message):
    with pytest.raises(ConfigError) as refusal:
        parse([f"--listen-client-urls={text}"])
    assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("url", "is_local", "is_open"),
    [
        (ListenUrl("0.0.0.0", 2379), False, True),
        (ListenUrl("::", 2379), False, True),
        (ListenUrl("10.0.0.1", 2379), False, True),
        (ListenUrl("etcd.example", 2379), False, True),
        (ListenUrl("127.0.0.1", 2379), True, False),
        (ListenUrl("127.9.9.9", 2379), True, False),
        (ListenUrl("::1", 2379), True, False),
        (ListenUrl("localhost", 2379), True, False),
        (ListenUrl("0.0.0.0", 2379, "https"), False, False),
        (ListenUrl("/run/kvd.sock", scheme="unix"), True, False),
    ],
    ids=str,
)
def test_a_url_says_which_hosts_can_connect_and_read_along(url, is_local, is_open):
    assert (url.is_local, url.is_open) == (is_local, is_open)


def test_a_bad_advertised_url_is_refused():
    with pytest.raises(ConfigError, match="--advertise-client-urls: a URL needs a port"):
        parse(["--advertise-client-urls", "http://kv.example"])
