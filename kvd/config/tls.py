"""The settings of TLS: which flags belong together, and etcd's names for cipher suites."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvd.config.flag import ConfigError, shown
from kvd.config.sources import Setting, Settings
from kvd.config.urls import ListenUrl
from kvd.config.values import boolean, comma_list, integer, word

_FLAGS = ("cert-file", "key-file", "trusted-ca-file", "ca-file", "client-cert-auth", "auto-tls")
_VERSIONS = ("TLS1.2", "TLS1.3")

# Go's names (crypto/tls), which etcd's flag takes, and OpenSSL's. Those of TLS 1.3 stand for
# nothing: they cannot be chosen, in Go neither. What no OpenSSL of today has (RC4, 3DES) is left
# out, and so refused.
_SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256": "ECDHE-ECDSA-AES128-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256": "ECDHE-RSA-AES128-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
    "TLS_RSA_WITH_AES_128_CBC_SHA256": "AES128-SHA256",
    "TLS_RSA_WITH_AES_128_CBC_SHA": "AES128-SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA": "AES256-SHA",
    "TLS_AES_128_GCM_SHA256": "",
    "TLS_AES_256_GCM_SHA384": "",
    "TLS_CHACHA20_POLY1305_SHA256": "",
}


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Settings of TLS; paths as they were given, empty for none.

    Attributes:
        cert_file: The certificate, with those between it and its authority behind it.
        key_file: Its private key.
        is_self_signed: Make both instead, and keep them in the data directory.
        validity_years: How long such a certificate is valid.
        trusted_ca_file: Authorities, one of which must have signed the certificate that each
            client then needs.
        crl_file: Which client certificates are revoked.
        allowed_hostname: A name that each client certificate must have.
        names_users: Whether the common name of a client certificate is that of a user.
        versions: The lowest and the highest version of the protocol: TLS1.2 or TLS1.3.
        ciphers: OpenSSL's names of cipher suites up to TLS 1.2; empty leaves them to OpenSSL.
    """

    cert_file: str
    key_file: str
    is_self_signed: bool
    validity_years: int
    trusted_ca_file: str
    crl_file: str
    allowed_hostname: str
    names_users: bool
    versions: tuple[str, str]
    ciphers: tuple[str, ...]


def tls_config(settings: Settings, listen: Sequence[ListenUrl]) -> TlsConfig | None:
    """Return the settings of TLS, or None where no URL needs it.

    Raises:
        ConfigError: One of them lacks another, or is not available.
    """
    asking = [url for url in listen if url.is_tls]
    cert, key = settings["cert-file"], settings["key-file"]
    for given, missing in ((cert, "--key-file"), (key, "--cert-file")):
        if given.text and not (cert.text and key.text):
            raise ConfigError(f"{given.where} needs {missing}")
    is_self_signed = boolean(settings, "auto-tls") and not cert.text
    if asking and not cert.text and not is_self_signed:
        raise ConfigError(f"{asking[0]} needs --cert-file and --key-file, or --auto-tls")
    config = TlsConfig(
        cert_file=cert.text,
        key_file=key.text,
        is_self_signed=is_self_signed,
        validity_years=integer(settings, "self-signed-cert-validity", highest=100),
        trusted_ca_file=settings["trusted-ca-file"].text,
        crl_file=settings["client-crl-file"].text,
        allowed_hostname=settings["client-cert-allowed-hostname"].text,
        names_users=boolean(settings, "client-cert-auth"),
        versions=_versions(settings),
        ciphers=_ciphers(settings),
    )
    _require_authorities(settings, config)
    return config if asking else None


def tls_flags(given: Settings) -> list[str]:
    """Return what is given that means nothing without an https:// URL."""
    return [given[name].where for name in _FLAGS if _is_given(given.get(name))]


def _is_given(setting: Setting | None) -> bool:
    return setting is not None and setting.text not in ("", "false")


def _require_authorities(settings: Settings, config: TlsConfig) -> None:
    """Refuse to check certificates without an authority: all clients would be admitted, or none."""
    needing = [
        name
        for name, value in (
            ("client-cert-auth", config.names_users),
            ("client-crl-file", config.crl_file),
            ("client-cert-allowed-hostname", config.allowed_hostname),
        )
        if value
    ]
    if needing and not config.trusted_ca_file:
        raise ConfigError(f"{settings[needing[0]].where} needs --trusted-ca-file")


def _versions(settings: Settings) -> tuple[str, str]:
    lowest = word(settings, "tls-min-version", *_VERSIONS)
    highest = word(settings, "tls-max-version", "", *_VERSIONS) or _VERSIONS[-1]
    if lowest > highest:
        raise ConfigError(
            f"{settings['tls-min-version'].where}: expected at most --tls-max-version, "
            f"{shown(highest)}, found {shown(lowest)}"
        )
    return lowest, highest


def _ciphers(settings: Settings) -> tuple[str, ...]:
    names = comma_list(settings, "cipher-suites", "a cipher suite")
    unknown = [name for name in names if name not in _SUITES]
    if unknown:
        where = settings["cipher-suites"].where
        raise ConfigError(
            f"{where}: expected suites such as {next(iter(_SUITES))}, found {shown(unknown[0])}"
        )
    return tuple(_SUITES[name] for name in names if _SUITES[name])
