"""Protection against cross-site requests and DNS rebinding: checks of hosts and origins.

A page on the Internet can have the browser of a visitor send requests to this server. By DNS
rebinding it makes the name of its own site resolve to an address of this server, so that for the
browser the two are one site: then `Host` names a foreign host (etcd's CVE-2018-1099). Or it posts a
form: then the browser sends the site of the page in `Sec-Fetch-Site` or `Origin`. Programs send
neither of these two headers.

Which headers need a look is decided once for each header block (`BrowserPolicy.is_usual`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address

# They change nothing, so that it is enough when a page cannot read their answers.
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_OWN_SITES = ("same-origin", "none")
_SHOWN_CHARACTERS_MAX = 256
# A name or an address, and maybe a port. Nothing escaped: a decoder may see another name.
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]*)\]|([A-Za-z0-9._~-]*))(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Hosts:
    """The hosts that requests may name.

    Attributes:
        names: In lower case.
        takes_local: Also addresses, names without a dot, and `*.localhost`: no site on the Internet
            has such a name.
    """

    names: frozenset[str]
    takes_local: bool

    def allow(self, host: str) -> bool:
        """Return whether a Host header, with its port or without, names one of them."""
        name = _without_port(host)
        if name is None:
            return False
        name = name.lower().removesuffix(".")
        if name in self.names:
            return True
        return self.takes_local and (
            "." not in name or name.endswith(".localhost") or _is_address(name)
        )


def hosts_of(
    whitelist: Collection[str] | None, own: Collection[str], *, is_local_only: bool
) -> Hosts | None:
    """Return the hosts that requests may name, or None for any.

    Args:
        whitelist: What the setting lists, `*` for any host; None without the setting. Then a server
            that only this machine reaches takes its own names alone.
        own: The names that are its own.
        is_local_only: Only this machine reaches it.
    """
    if whitelist is not None:
        if not whitelist or "*" in whitelist:
            return None
        return Hosts(frozenset(map(str.lower, whitelist)), takes_local=False)
    if is_local_only:
        return Hosts(frozenset(name.lower() for name in own if name), takes_local=True)
    return None


class BrowserPolicy:
    """Refuses requests that a page of another site may have had a browser make.

    Attributes:
        origins: The origins whose pages may read and write; `*` for any.
    """

    def __init__(self, hosts: Hosts | None, origins: Collection[str]) -> None:
        """Take requests for these hosts, and writes from pages of these origins (`*`: of any)."""
        self._hosts = hosts
        self.origins = frozenset(origins)
        self._takes_any_page = "*" in self.origins

    def is_usual(self, headers: Mapping[str, str]) -> bool:
        """Return whether no request with these headers can be refused here."""
        if self._hosts is not None and not self._hosts.allow(headers.get("Host", "")):
            return False
        return self._takes_any_page or not ("Origin" in headers or "Sec-Fetch-Site" in headers)

    def refusal(
        self,
        method: str,
        headers: Mapping[str, str],
        *,
        is_secured: bool,
        authority: str | None = None,
    ) -> tuple[HTTPStatus, str] | None:
        """Return the status and the reason with which a request is refused, or None.

        With TLS the host is as good as the certificate, and taken as it is (as in etcd).

        Args:
            method: of the request.
            headers: of the request.
            is_secured: whether it came over TLS.
            authority: the host and port of a target in absolute form. A target and a Host header
                that differ are refused: a proxy may have judged either.
        """
        host = headers.get("Host", "" if authority is None else authority)
        if authority is not None and authority.lower() != host.lower():
            return HTTPStatus.MISDIRECTED_REQUEST, "the target names another host than Host"
        if self._hosts is not None and not is_secured and not self._hosts.allow(host):
            return HTTPStatus.MISDIRECTED_REQUEST, (
                f"{_shown(_without_port(host) or host) or 'no host'} is not a host of this server; "
                "see kvd --host-whitelist"
            )
        if method not in _SAFE_METHODS and not self._takes_any_page and _is_foreign(headers, host):
            origin = headers.get("Origin", "")
            if origin not in self.origins:
                return HTTPStatus.FORBIDDEN, (
                    f"a page of {_shown(origin) or 'another site'} may change nothing here; "
                    "see kvd --cors"
                )
        return None


def _is_foreign(headers: Mapping[str, str], host: str) -> bool:
    """Return whether a page of another origin has sent a request."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in _OWN_SITES
    origin = headers.get("Origin")
    # A browser without `Sec-Fetch-Site`, or one that does not send it to an insecure host.
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def _without_port(host: str) -> str | None:
    """Return the name or address of a Host header, or None if it is malformed."""
    match = _HOST.fullmatch(host)
    return None if match is None else match[1] or match[2] or ""


def _shown(text: str) -> str:
    """Return not too much of what a client says: a log line quotes it."""
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
