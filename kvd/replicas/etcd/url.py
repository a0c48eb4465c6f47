"""The text that names an etcd and a place in it: `etcd://h1:2379,h2:2379/kvd/prod`. Pure."""

from dataclasses import dataclass

PORT = 2379
SCHEMES = {"etcd": False, "etcds": True}


@dataclass(frozen=True, slots=True)
class EtcdUrl:
    """Members as host and port, and the prefix of all keys, as `/kvd/prod/`."""

    is_tls: bool
    members: tuple[tuple[str, int], ...]
    prefix: str

    def __str__(self) -> str:
        hosts = ",".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.members
        )
        return f"{'etcds' if self.is_tls else 'etcd'}://{hosts}{self.prefix.rstrip('/')}"


def parse(text: str) -> EtcdUrl:
    """Read such a text.

    Raises:
        ValueError: what is wrong with it.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"{text!r} does not begin with etcd:// or etcds://")
    hosts, _, path = rest.partition("/")
    if "@" in hosts:
        raise ValueError("a URL of an engine holds no user and no password; they have flags")
    if any(mark in rest for mark in "?#"):
        raise ValueError(f"{text!r} has a query or a fragment; only hosts and a prefix are known")
    parts = [part for part in path.split("/") if part]
    if not parts:
        raise ValueError(
            f"{text!r} has no prefix: end it with one, as in etcd://host:2379/kvd/prod"
        )
    if not all(32 < ord(character) < 127 for character in path):
        raise ValueError(f"the prefix of {text!r} has other characters than visible ASCII")
    members = tuple(host_and_port(host, text, PORT) for host in hosts.split(","))
    if len(set(members)) < len(members):
        raise ValueError(f"{text!r} names a host twice")
    return EtcdUrl(SCHEMES[scheme], members, f"/{'/'.join(parts)}/")


def host_and_port(text: str, url: str, default: int) -> tuple[str, int]:
    """Read one of the hosts of a URL.

    Raises:
        ValueError: what is wrong with it.
    """
    host, port = text, ""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise ValueError(f"{text!r} in {url!r} is no host and port: write [::1]:{default}")
        port = port.removeprefix(":")
    elif text.count(":") > 1:
        raise ValueError(f"{text!r} in {url!r}: an IPv6 address goes in brackets, [::1]:{default}")
    else:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError(f"{url!r} has an empty host")
    if not port and text.endswith(":"):
        raise ValueError(f"{text!r} in {url!r} has no port after the colon")
    if not port:
        return host, default
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise ValueError(f"{port!r} in {url!r} is no port from 1 to 65535")
    return host, int(port)
