"""The settings of TLS: what belongs together, and what is refused."""

import pytest

from kvd.config.config import Config
from kvd.config.load import ConfigError, parse
from kvd.config.tls import TlsConfig

HTTPS = ("--listen-client-urls", "https://127.0.0.1:2379")
PAIR = ("--cert-file", "c", "--key-file", "k")
CA = ("--trusted-ca-file", "ca")


def config(*argv: str) -> Config:
    parsed = parse(argv)
    assert isinstance(parsed, Config)
    return parsed


def tls(*argv: str) -> TlsConfig:
    found = config(*HTTPS, *argv).tls
    assert found is not None
    return found


def test_a_certificate_and_its_key_are_enough():
    assert tls(*PAIR) == TlsConfig(
        cert_file="c",
        key_file="k",
        is_self_signed=False,
        validity_years=1,
        trusted_ca_file="",
        crl_file="",
        allowed_hostname="",
        names_users=False,
        versions=("TLS1.2", "TLS1.3"),
        ciphers=(),
    )


@pytest.mark.parametrize("url", ["https://127.0.0.1:2379", "unixs:///run/kvd.sock"])
def test_any_url_that_asks_for_it_has_it(url):
    assert config("--listen-client-urls", f"http://a:1,{url}", *PAIR).tls is not None


def test_none_is_spoken_where_no_url_asks_for_it():
    parsed = config(*PAIR, *CA, "--client-cert-auth", "--auto-tls=false")
    assert parsed.tls is None
    assert parsed.warnings == (
        "no https:// URL is listened on, ignored: "
        "--cert-file --key-file --trusted-ca-file --client-cert-auth",
    )


def test_a_certificate_that_is_given_is_not_made():
    assert tls("--auto-tls").is_self_signed
    assert not tls("--auto-tls", *PAIR).is_self_signed


@pytest.mark.parametrize(
    ("argv", "field", "expected"),
    [
        (CA, "trusted_ca_file", "ca"),
        ((*CA, "--client-cert-auth"), "names_users", True),
        ((*CA, "--client-crl-file", "r"), "crl_file", "r"),
        ((*CA, "--client-cert-allowed-hostname", "h"), "allowed_hostname", "h"),
        (("--ca-file", "ca"), "trusted_ca_file", "ca"),
        (("--ca-file", "ca"), "names_users", True),
        (("--self-signed-cert-validity", "10"), "validity_years", 10),
        (("--tls-min-version", "TLS1.3"), "versions", ("TLS1.3", "TLS1.3")),
        (("--tls-max-version", "TLS1.2"), "versions", ("TLS1.2", "TLS1.2")),
        (
            (
                "--cipher-suites",
                "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_AES_128_GCM_SHA256,"
                "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
            ),
            "ciphers",
            ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-CHACHA20-POLY1305"),
        ),
    ],
    ids=str,
)
def test_each_flag_sets_its_field(argv, field, expected):
    assert getattr(tls(*PAIR, *argv), field) == expected


def test_etcds_file_may_keep_them_in_a_mapping_of_their_own():
    file = b"""
        listen-client-urls: https://127.0.0.1:2379
        client-transport-security:
          cert-file: c
          key-file: k
          client-cert-auth: true
          trusted-ca-file: ca
          auto-tls: false
    """
    parsed = parse(["--config-file", "x"], {}, lambda _path: file)
    assert isinstance(parsed, Config)
    assert parsed == config(*HTTPS, *PAIR, *CA, "--client-cert-auth")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "https://127.0.0.1:2379 needs --cert-file and --key-file, or --auto-tls"),
        (("--cert-file", "c"), "--cert-file needs --key-file"),
        (("--key-file", "k"), "--key-file needs --cert-file"),
        ((*PAIR, "--client-cert-auth"), "--client-cert-auth needs --trusted-ca-file"),
        ((*PAIR, "--client-crl-file", "r"), "--client-crl-file needs --trusted-ca-file"),
        (
            (*PAIR, "--client-cert-allowed-hostname", "h"),
            "--client-cert-allowed-hostname needs --trusted-ca-file",
        ),
        ((*PAIR, "--ca-file", "a", *CA), "--ca-file and --trusted-ca-file say the same: give one"),
        (
            (*PAIR, "--tls-min-version", "TLS1.1"),
            '--tls-min-version: expected one of TLS1.2, TLS1.3, found "TLS1.1"',
        ),
        (
            (*PAIR, "--tls-min-version", "TLS1.3", "--tls-max-version", "TLS1.2"),
            '--tls-min-version: expected at most --tls-max-version, "TLS1.2", found "TLS1.3"',
        ),
        (
            (*PAIR, "--cipher-suites", "TLS_RSA_WITH_RC4_128_SHA"),
            "--cipher-suites: expected suites such as TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, "
            'found "TLS_RSA_WITH_RC4_128_SHA"',
        ),
        (
            (*PAIR, "--self-signed-cert-validity", "0"),
            '--self-signed-cert-validity: expected a whole number, 1 to 100, found "0"',
        ),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(argv, message):
    with pytest.raises(ConfigError) as refused:
        parse([*HTTPS, *argv])
    assert str(refused.value) == message
