"""The settings of several servers with one store: which belong together, and what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvd.config.flag import ConfigError, shown
from kvd.config.replicas.flags import OF_THE_ENGINE, PEER_NAMES
from kvd.config.sources import Settings
from kvd.config.urls import WILDCARDS, ListenUrl, advertised_urls, listen_urls
from kvd.config.values import boolean, integer, refusal

SCHEMES = ("etcd", "etcds", "postgres", "postgresql")
_LEASE_S_MIN = 2  # etcd makes none shorter
_LEASE_S_MAX = 60

# Replicas check each other's certificates by their authority and by the secret of the log alone.
_CHECKS_OF_ETCD = (
    *("peer-auto-tls", "peer-crl-file", "peer-cert-allowed-cn", "peer-cert-allowed-hostname"),
)


@dataclass(frozen=True, slots=True)
class PeerTls:
    """TLS between replicas; paths as they were given, empty for none.

    Attributes:
        cert_file: The certificate, shown to replicas that connect and to those connected to.
        key_file: Its private key.
        trusted_ca_file: Authorities of the certificates of the others; empty: the system's.
        client_cert_auth: Whether replicas that connect need a certificate.
    """

    cert_file: str
    key_file: str
    trusted_ca_file: str
    client_cert_auth: bool


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """Settings of a server that shares its store; paths as they were given, empty for none.

    Attributes:
        url: The engine that keeps the log, and the place in it.
        ca_file: Authorities of the engine's certificates; empty: the system's.
        cert_file: The certificate shown to the engine.
        key_file: Its private key.
        user: The user of the engine; empty for none.
        password_file: The file that holds the user's password.
        lease_s: How long a leader that is silent keeps the lead.
        listen_peers: Where the other replicas connect to; all with TLS or all without.
        peer_tls: TLS between replicas; None where the URLs do not ask for it.
    """

    url: str
    ca_file: str
    cert_file: str
    key_file: str
    user: str
    password_file: str
    lease_s: int
    listen_peers: tuple[ListenUrl, ...]
    peer_tls: PeerTls | None


def replica_config(settings: Settings) -> ReplicaConfig | None:
    """Return the settings of a server that shares its store; None without `--replicate`.

    Raises:
        ConfigError: One of them lacks another, or cannot be used.
    """
    if not settings["replicate"].text:
        _refuse_alone(settings)
        return None
    _require_engine(settings)
    for name in _CHECKS_OF_ETCD:
        if settings[name].text not in ("", "false"):
            raise ConfigError(
                f"{settings[name].where}: replicas check each other's certificates by "
                "--peer-trusted-ca-file alone"
            )
    listen = _listen_peers(settings)
    return ReplicaConfig(
        url=settings["replicate"].text,
        ca_file=settings["replicate-ca-file"].text,
        cert_file=settings["replicate-cert-file"].text,
        key_file=settings["replicate-key-file"].text,
        user=settings["replicate-user"].text,
        password_file=settings["replicate-password-file"].text,
        lease_s=integer(settings, "replicate-lease", lowest=_LEASE_S_MIN, highest=_LEASE_S_MAX),
        listen_peers=listen,
        peer_tls=_peer_tls(settings, listen),
    )


def peer_urls(settings: Settings, replicas: ReplicaConfig | None) -> tuple[str, ...]:
    """Return the URLs that this member shows as its own among peers.

    Raises:
        ConfigError: There are none at which other replicas could reach this one.
    """
    name = "initial-advertise-peer-urls"
    if replicas is None:
        return advertised_urls(settings, name)
    if not settings[name].is_default:
        urls = advertised_urls(settings, name)
        if not urls:
            raise refusal(settings, name, "at least one URL")
        if any(url.partition("://")[0] not in ("http", "https") for url in urls):
            raise refusal(settings, name, "http://HOST:PORT or https://HOST:PORT")
        return urls
    open_ended = [url for url in replicas.listen_peers if url.host in WILDCARDS]
    if open_ended:
        raise ConfigError(
            f"{settings['listen-peer-urls'].where}: {open_ended[0]} leads every machine to itself; "
            f"give the others a URL of this one by --{name}"
        )
    return tuple(map(str, replicas.listen_peers))


def unused_tls(given: Settings, replicas: ReplicaConfig | None) -> list[str]:
    """Return what is given for replicas and means nothing without an https:// peer URL."""
    if replicas is None or replicas.peer_tls is not None:
        return []
    return [
        setting.where
        for name, setting in given.items()
        if name in PEER_NAMES - {"listen-peer-urls"} and setting.text not in ("", "false")
    ]


def _refuse_alone(settings: Settings) -> None:
    for flag in OF_THE_ENGINE:
        if settings[flag.name].text != flag.default:
            raise ConfigError(f"{settings[flag.name].where} needs --replicate")


def _require_engine(settings: Settings) -> None:
    setting = settings["replicate"]
    scheme, separator, rest = setting.text.partition("://")
    if "@" in rest.partition("/")[0]:  # not shown: it may hold a password
        raise ConfigError(
            f"{setting.where}: expected no user in the URL; see --replicate-user and "
            "--replicate-password-file"
        )
    if not separator or scheme not in SCHEMES:
        raise refusal(
            settings, "replicate", "etcd://HOST:PORT,.../PREFIX, or etcds:// or postgres://"
        )
    for one, other in (("cert", "key"), ("key", "cert")):
        _require(settings, f"replicate-{one}-file", f"replicate-{other}-file")
    if scheme.startswith("etcd"):  # a PostgreSQL may know a user by certificate or by host
        _require(settings, "replicate-user", "replicate-password-file")
    _require(settings, "replicate-password-file", "replicate-user")
    if scheme == "etcd":
        for name in ("replicate-ca-file", "replicate-cert-file"):
            if settings[name].text:
                raise ConfigError(
                    f"{settings[name].where} needs an etcds:// URL, found {shown(setting.text)}"
                )


def _require(settings: Settings, name: str, other: str) -> None:
    if settings[name].text and not settings[other].text:
        raise ConfigError(f"{settings[name].where} needs --{other}")


def _listen_peers(settings: Settings) -> tuple[ListenUrl, ...]:
    urls = listen_urls(settings, "listen-peer-urls")
    if not urls:
        raise ConfigError(
            f"{settings['replicate'].where} needs --listen-peer-urls: where the other replicas "
            "connect to"
        )
    if any(url.is_socket for url in urls):
        raise refusal(settings, "listen-peer-urls", "http://HOST:PORT or https://HOST:PORT")
    if len({url.is_tls for url in urls}) > 1:
        raise refusal(settings, "listen-peer-urls", "http:// or https:// for all of them")
    return urls


def _peer_tls(settings: Settings, listen: Sequence[ListenUrl]) -> PeerTls | None:
    for one, other in (("cert", "key"), ("key", "cert")):
        _require(settings, f"peer-{one}-file", f"peer-{other}-file")
    cert = settings["peer-cert-file"].text
    names_authority = boolean(settings, "peer-client-cert-auth")
    if names_authority and not settings["peer-trusted-ca-file"].text:
        where = settings["peer-client-cert-auth"].where
        raise ConfigError(f"{where} needs --peer-trusted-ca-file")
    if not listen[0].is_tls:
        return None
    if not cert:
        raise ConfigError(f"{listen[0]} needs --peer-cert-file and --peer-key-file")
    return PeerTls(
        cert,
        settings["peer-key-file"].text,
        settings["peer-trusted-ca-file"].text,
        names_authority,
    )
