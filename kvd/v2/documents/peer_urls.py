"""The URLs that a member is reached at by its peers, as requests give them: checked as etcd does.

The texts of errors are etcd's (`types.NewURLs`) and, where a URL cannot be taken apart, those of
Go's net/url, of which this is as much as they need.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote as quote_url

from kvd.v2.errors import RouteError
from kvd.v2.go_text import quote

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+\-.]*):")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PORT = re.compile(r"(?::[0-9]*)?")
_USER = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
# What may stand in a host as it is; what is no ASCII may.
_NOT_IN_HOST = re.compile(r"""[^A-Za-z0-9\-_.~!$&'()*+,;=:\[\]<>"%\x80-\U0010ffff]""")


class _BadUrl(Exception):
    """It cannot be taken apart; the text is net/url's."""


def read_urls(texts: Iterable[str]) -> tuple[str, ...]:
    """Return URLs, sorted, as Go writes them.

    Raises:
        RouteError: 400, there is none, or one that no member could listen on.
    """
    urls = tuple(map(_read, texts))
    if not urls:
        raise RouteError(400, "no valid URLs given")
    return tuple(sorted(urls))


def _read(text: str) -> str:
    text = text.strip()
    start = text.partition("#")[0]
    try:
        scheme, host, path = _split(start)
    except _BadUrl as error:
        raise RouteError(400, f"parse {_quoted(start)}: {error}") from None
    if scheme not in ("http", "https", "unix", "unixs"):
        raise RouteError(400, f"URL scheme must be http, https, unix, or unixs: {text}")
    if not _has_host_and_port(host):
        raise RouteError(400, f'URL address does not have the form "host:port": {text}')
    if path:
        raise RouteError(400, f"URL must not contain a path: {text}")
    rest = text[len(scheme) :].removesuffix("#")
    return scheme + "".join(c if c.isascii() else quote_url(c) for c in rest)


def _split(text: str) -> tuple[str, str, str]:
    """Return scheme, host with port, and path of a URL without its fragment."""
    if _CONTROL.search(text):
        raise _BadUrl("net/url: invalid control character in URL")
    if text.startswith(":"):
        raise _BadUrl("missing protocol scheme")
    match = _SCHEME.match(text)
    scheme, rest = (match[1].lower(), text[match.end() :]) if match else ("", text)
    rest = rest.partition("?")[0]
    if scheme and not rest.startswith("/"):
        return scheme, "", ""
    if not rest.startswith("/") and ":" in rest.partition("/")[0]:
        raise _BadUrl("first path segment in URL cannot contain colon")
    host = ""
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        host, rest = _host(authority), slash + path
    _check_escapes(rest)
    return scheme, host, rest


def _host(authority: str) -> str:
    user, at, host = authority.rpartition("@")
    end = host.rfind("]") + 1
    if host.startswith("["):
        if not end:
            raise _BadUrl("missing ']' in host")
        _check_port(host[end:])
        host_only, zone, rest = host.partition("%25")
        _check_host(host_only if zone else host)
        _check_escapes(rest)
    else:
        if ":" in host:
            _check_port(host[host.rfind(":") :])
        _check_host(host)
    if at and not _USER.fullmatch(user):
        raise _BadUrl("net/url: invalid userinfo")
    _check_escapes(user)
    return host


def _check_port(port: str) -> None:
    if not _PORT.fullmatch(port):
        raise _BadUrl(f"invalid port {_quoted(port)} after host")


def _check_host(host: str) -> None:
    _check_escapes(host)
    for escape in _ESCAPE.findall(host):
        # In a host only what is no ASCII may be escaped (RFC 6874), or a percent sign.
        if escape[1] < "8" and escape != "%25":
            raise _BadUrl(f"invalid URL escape {_quoted(escape)}")
    if bad := _NOT_IN_HOST.search(host):
        raise _BadUrl(f"invalid character {_quoted(bad[0])} in host name")


def _check_escapes(text: str) -> None:
    for start in (found.start() for found in re.finditer("%", text)):
        if not _ESCAPE.match(text, start):
            raise _BadUrl(f"invalid URL escape {_quoted(text[start : start + 3])}")


def _has_host_and_port(host: str) -> bool:
    """Return whether Go's `net.SplitHostPort` takes it: `host:port` or `[host]:port`."""
    name, colon, _ = host.rpartition(":")
    if not colon:
        return False
    if name.startswith("["):
        return name.find("]") == len(name) - 1
    return not set(name) & set(":[]")


def _quoted(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape")).decode()
