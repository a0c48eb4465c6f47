"""Self-signed certificate (`--auto-tls`), stored as `tls/*.pem` in the data directory.

It proves nothing to a client that has not seen it before; what it gives is encryption. It is used
again by the next start, and replaced when it is for other hosts or has nearly ended.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from kvd.storage import disk

if TYPE_CHECKING:
    from cryptography import x509

log = logging.getLogger(__name__)

EXIT_CONFIG = 78

_RENEWED_BEFORE_END = timedelta(days=30)
_CLOCKS_DIFFER = timedelta(hours=1)


class TlsUnusable(Exception):
    """Certificates or keys that cannot be served; the message says which and why."""

    exit_status = EXIT_CONFIG


def self_signed(directory: Path, hosts: Sequence[str], *, years: int) -> tuple[Path, Path]:
    """Return certificate and key; make them if they are missing or do not fit.

    Args:
        directory: where they are kept; made if it is missing.
        hosts: the names and addresses that the certificate is for.
        years: how long one that is made is valid.

    Raises:
        TlsUnusable: the package that makes certificates is missing, or the disk refuses.
    """
    cert, key = directory / "cert.pem", directory / "key.pem"
    try:
        if not _is_good(cert, key, hosts):
            disk.make_directory_durably(directory)
            certificate, private = _make(hosts, years)
            disk.write_file_durably(key, private)
            disk.write_file_durably(cert, certificate)
            log.info("%s: a new certificate for %s", cert, ", ".join(hosts))
    except ImportError:
        raise TlsUnusable(
            "--auto-tls needs the package cryptography: pip install 'kvd[tls]'"
        ) from None
    except OSError as error:
        raise TlsUnusable(f"{directory}: {error.strerror}") from error
    return cert, key


def _is_good(cert: Path, key: Path, hosts: Sequence[str]) -> bool:
    from cryptography import x509  # noqa: PLC0415 -- it need not be there
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    if not (cert.exists() and key.exists()):
        return False
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
        private = load_pem_private_key(key.read_bytes(), None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    if private.public_key() != certificate.public_key():  # a start was killed between the two
        return False
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    return left > _RENEWED_BEFORE_END and list(names) == list(map(_name, hosts))


def _make(hosts: Sequence[str], years: int) -> tuple[bytes, bytes]:
    """Return a new certificate and its key, in PEM."""
    from cryptography import x509  # noqa: PLC0415 -- it need not be there
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID  # noqa: PLC0415

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "kvd")])
    now = datetime.now(UTC)
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    # Clients that verify strictly (RFC 5280) look for both.
    own = x509.SubjectKeyIdentifier.from_public_key(private.public_key())
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(private.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=365 * years))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(own, critical=False)
        .add_extension(signer, critical=False)
        .add_extension(purpose, critical=False)
        .add_extension(x509.SubjectAlternativeName(map(_name, hosts)), critical=False)
        .sign(private, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def _name(host: str) -> x509.GeneralName:
    from cryptography import x509  # noqa: PLC0415 -- it need not be there

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
