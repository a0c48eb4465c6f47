"""The settings of several servers with one store."""

import pytest

from kvd.config.config import Config
from kvd.config.load import ConfigError, Printout, parse
from kvd.config.replicas.settings import PeerTls, ReplicaConfig
from kvd.config.urls import ListenUrl

ENGINE = ("--replicate", "etcd://h1:2379,h2/kvd/prod")
PEERS = ("--listen-peer-urls", "http://h1:2380")
TLS_PEERS = ("--listen-peer-urls", "https://h1:2380")


def config(*argv: str) -> Config:
    parsed = parse(argv)
    assert isinstance(parsed, Config)
    return parsed


def test_without_the_flag_a_server_is_alone():
    parsed = config(*PEERS, "--peer-client-cert-auth")
    assert parsed.replicate is None
    assert parsed.peer_urls == ("http://localhost:2380",)
    assert parsed.warnings == (
        "without effect here, ignored: --listen-peer-urls --peer-client-cert-auth",
    )


def test_an_engine_and_the_peer_urls_are_enough():
    parsed = config(*ENGINE, *PEERS)
    assert parsed.replicate == ReplicaConfig(
        url="etcd://h1:2379,h2/kvd/prod",
        ca_file="",
        cert_file="",
        key_file="",
        user="",
        password_file="",
        lease_s=3,
        listen_peers=(ListenUrl("h1", 2380),),
        peer_tls=None,
    )
    assert parsed.peer_urls == ("http://h1:2380",)
    assert parsed.warnings == ()


def test_all_of_them_together():
    parsed = config(
        *("--replicate", "etcds://h1/p", "--replicate-ca-file", "ca", "--replicate-lease=10"),
        *("--replicate-cert-file", "c", "--replicate-key-file", "k"),
        *("--replicate-user", "u", "--replicate-password-file", "pw"),
        *("--listen-peer-urls", "https://0.0.0.0:0,https://[::1]:2380"),
        *("--initial-advertise-peer-urls", "https://h1.example:2380"),
        *("--peer-cert-file", "pc", "--peer-key-file", "pk"),
        *("--peer-trusted-ca-file", "pca", "--peer-client-cert-auth"),
    )
    found = parsed.replicate
    assert found is not None
    assert (found.ca_file, found.cert_file, found.key_file) == ("ca", "c", "k")
    assert (found.user, found.password_file, found.lease_s) == ("u", "pw", 10)
    assert list(map(str, found.listen_peers)) == ["https://0.0.0.0:0", "https://[::1]:2380"]
    assert found.peer_tls == PeerTls("pc", "pk", "pca", client_cert_auth=True)
    assert parsed.peer_urls == ("https://h1.example:2380",)


def test_a_user_of_a_postgresql_may_have_no_password():
    parsed = config("--replicate=postgres://h1,h2/kvd", *PEERS, "--replicate-user", "u")
    assert parsed.replicate is not None
    assert (parsed.replicate.user, parsed.replicate.password_file) == ("u", "")


def test_tls_of_peers_without_an_address_for_it_is_warned_about():
    (warning,) = config(*ENGINE, *PEERS, "--peer-cert-file=c", "--peer-key-file=k").warnings
    assert warning == (
        "no https:// peer URL is listened on, ignored: --peer-cert-file --peer-key-file"
    )


def test_what_is_printed_names_peers_only_where_they_mean_something():
    def printed(*argv: str) -> str:
        parsed = parse([*argv, "--print-config"])
        assert isinstance(parsed, Printout)
        return parsed.text

    assert "listen-peer-urls: http://h1:2380 " in printed(*ENGINE, *PEERS)
    assert "peer-client-cert-auth" not in printed()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((*PEERS, "--replicate-user", "u"), "--replicate-user needs --replicate"),
        (("--replicate-lease", "5"), "--replicate-lease needs --replicate"),
        (
            ENGINE,
            "--replicate needs --listen-peer-urls: where the other replicas connect to",
        ),
        (
            ("--replicate", "h1:2379/kvd", *PEERS),
            "--replicate: expected etcd://HOST:PORT,.../PREFIX, or etcds:// or postgres://, "
            'found "h1:2379/kvd"',
        ),
        (
            ("--replicate", "etcd://root:secret@h1/kvd", *PEERS),
            "--replicate: expected no user in the URL; see --replicate-user and "
            "--replicate-password-file",
        ),
        (
            (*ENGINE, *PEERS, "--replicate-user", "u"),
            "--replicate-user needs --replicate-password-file",
        ),
        (
            (*ENGINE, *PEERS, "--replicate-password-file", "f"),
            "--replicate-password-file needs --replicate-user",
        ),
        (
            (*ENGINE, *PEERS, "--replicate-ca-file", "f"),
            '--replicate-ca-file needs an etcds:// URL, found "etcd://h1:2379,h2/kvd/prod"',
        ),
        (
            ("--replicate=etcds://h/p", *PEERS, "--replicate-cert-file", "f"),
            "--replicate-cert-file needs --replicate-key-file",
        ),
        (
            ("--replicate=etcds://h/p", *PEERS, "--replicate-key-file", "f"),
            "--replicate-key-file needs --replicate-cert-file",
        ),
        (
            (*ENGINE, *PEERS, "--replicate-lease", "1"),
            '--replicate-lease: expected a whole number, 2 to 60, found "1"',
        ),
        (
            (*ENGINE, "--listen-peer-urls", "unix:///run/kvd"),
            "--listen-peer-urls: expected http://HOST:PORT or https://HOST:PORT, "
            'found "unix:///run/kvd"',
        ),
        (
            (*ENGINE, "--listen-peer-urls", "http://a:1,https://b:2"),
            "--listen-peer-urls: expected http:// or https:// for all of them, "
            'found "http://a:1,https://b:2"',
        ),
        (
            (*ENGINE, "--listen-peer-urls", "http://0.0.0.0:2380"),
            "--listen-peer-urls: http://0.0.0.0:2380 leads every machine to itself; give the "
            "others a URL of this one by --initial-advertise-peer-urls",
        ),
        (
            (*ENGINE, *PEERS, "--initial-advertise-peer-urls", ""),
            '--initial-advertise-peer-urls: expected at least one URL, found ""',
        ),
        (
            (*ENGINE, *PEERS, "--initial-advertise-peer-urls", "unix:///run/kvd"),
            "--initial-advertise-peer-urls: expected http://HOST:PORT or https://HOST:PORT, "
            'found "unix:///run/kvd"',
        ),
        (
            (*ENGINE, *TLS_PEERS),
            "https://h1:2380 needs --peer-cert-file and --peer-key-file",
        ),
        (
            (*ENGINE, *TLS_PEERS, "--peer-cert-file", "c"),
            "--peer-cert-file needs --peer-key-file",
        ),
        (
            (*ENGINE, *PEERS, "--peer-client-cert-auth"),
            "--peer-client-cert-auth needs --peer-trusted-ca-file",
        ),
        (
            (*ENGINE, *PEERS, "--peer-auto-tls"),
            "--peer-auto-tls: replicas check each other's certificates by "
            "--peer-trusted-ca-file alone",
        ),
        (
            (*ENGINE, *PEERS, "--peer-crl-file", "f"),
            "--peer-crl-file: replicas check each other's certificates by "
            "--peer-trusted-ca-file alone",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(argv, message):
    with pytest.raises(ConfigError) as refusal:
        parse(argv)
    assert str(refusal.value) == message
