"""Names in a client's certificate, as `ssl.SSLObject.getpeercert` returns it."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any


def common_name(certificate: Mapping[str, Any]) -> str:
    """Return the common name, or an empty string."""
    for attributes in certificate.get("subject", ()):
        for name, value in attributes:
            if name == "commonName":
                return str(value)
    return ""


def is_for(certificate: Mapping[str, Any], host: str) -> bool:
    """Return whether a certificate is for a host: a name, with `*` for its first label, or an IP.

    As Go's `VerifyHostname`: by the alternative names alone.
    """
    wildcard = "*." + host.partition(".")[2]
    for kind, value in certificate.get("subjectAltName", ()):
        if kind == "DNS" and value.lower() in (host.lower(), wildcard.lower()):
            return True
        if kind == "IP Address" and _same_address(value, host):
            return True
    return False


def _same_address(one: str, other: str) -> bool:
    try:
        return ip_address(one) == ip_address(other)
    except ValueError:
        return False
