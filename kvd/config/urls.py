"""URLs in settings: the ones listened on, the ones given to clients, and origins of pages."""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from kvd.config.flag import ConfigError, shown
from kvd.config.sources import Settings
from kvd.config.values import comma_list

WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 -- the addresses that mean all of a machine's
_SOCKETS = ("unix", "unixs")
_FORMS = "expected http://HOST:PORT, https://HOST:PORT or unix:///PATH"
_TLS = ("https", "unixs")


@dataclass(frozen=True, slots=True)
class ListenUrl:
    """An address to listen on; as a string, its URL.

    Attributes:
        host: A name or an address, an IPv6 address without its brackets; the path of a socket.
        port: 0 lets the system choose one; a socket has none.
        scheme: http or https; unix or unixs for a socket in the file system.
    """

    host: str
    port: int = 0
    scheme: str = "http"

    @property
    def is_socket(self) -> bool:
        """Whether it is a path in the file system."""
        return self.scheme in _SOCKETS

    @property
    def is_tls(self) -> bool:
        """Whether TLS is spoken there."""
        return self.scheme in _TLS

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect there."""
        return self.is_socket or self.host == "localhost" or _is_loopback(self.host)

    @property
    def is_open(self) -> bool:
        """Whether what is sent there can be read on the network: from elsewhere, without TLS."""
        return not (self.is_tls or self.is_local)

    def __str__(self) -> str:
        if self.is_socket:
            return f"{self.scheme}://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def listen_urls(settings: Settings, *names: str) -> tuple[ListenUrl, ...]:
    """Return where to listen by these settings together; none for empty texts."""
    urls: list[ListenUrl] = []
    for name in names:
        for text in comma_list(settings, name, "a URL"):
            url = _listen_url(settings, name, text)
            if (url.port or url.is_socket) and url in urls:
                raise ConfigError(f"{settings[name].where}: {shown(text)} is there twice")
            urls.append(url)
    return tuple(urls)


def advertised_urls(settings: Settings, name: str) -> tuple[str, ...]:
    """Return URLs that are given to clients; none for an empty text."""
    urls = comma_list(settings, name, "a URL")
    for text in urls:
        if not _is_socket(text):
            _url(settings, name, text)
    return tuple(urls)


def origins(settings: Settings, name: str) -> tuple[str, ...]:
    """Return the origins of pages, as browsers send them, and `*`."""
    found = comma_list(settings, name, "an origin")
    for text in found:
        scheme, separator, host = text.partition("://")
        is_origin = scheme in ("http", "https") and separator and host and "/" not in host
        if text != "*" and not (is_origin and text.isprintable()):
            where = settings[name].where
            raise ConfigError(
                f"{where}: expected * or origins such as http://host:80, found {shown(text)}"
            )
    return tuple(found)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_socket(text: str) -> bool:
    scheme, separator, path = text.partition("://")
    return scheme in _SOCKETS and bool(separator and path) and text.isprintable()


def _listen_url(settings: Settings, name: str, text: str) -> ListenUrl:
    if _is_socket(text):
        scheme, _, path = text.partition("://")
        return ListenUrl(path, scheme=scheme)
    parts, host, port = _url(settings, name, text)
    return ListenUrl(host, port, parts.scheme)


def _url(settings: Settings, name: str, text: str) -> tuple[SplitResult, str, int]:
    """Take a URL apart that has a scheme, a host and a port and nothing else."""

    def refused(reason: str) -> ConfigError:
        return ConfigError(f"{settings[name].where}: {reason}, found {shown(text)}")

    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number up to 65535, brackets around no address
        raise refused(_FORMS) from None
    if parts.scheme not in ("http", "https") or not text.isprintable() or " " in text:
        raise refused(_FORMS)
    if parts.path or "?" in text or "#" in text:
        raise refused("a URL must not contain a path")
    if "@" in parts.netloc:
        raise refused("a URL must not contain a user")
    if not host:
        raise refused("a URL needs a host (0.0.0.0 or [::] is every address)")
    if port is None:
        raise refused("a URL needs a port")
    return parts, host, port
