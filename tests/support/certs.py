"""An authority of one's own, and the certificates that it signs, as files."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Pair(NamedTuple):
    """A certificate and its key."""

    cert: Path
    key: Path
    serial: int


class Authority:
    """Signs certificates; `cert` is its own."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self.cert = directory / f"{name}.pem"
        certificate = (
            _builder(self._name, self._name, self._key, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def sign(
        self, name: str, *hosts: str, file: str = "", password: bytes = b"", rsa_bits: int = 0
    ) -> Pair:
        """Make a key and a certificate of this common name, for these hosts, as files."""
        key: Key = ec.generate_private_key(ec.SECP256R1())
        if rsa_bits:
            key = rsa.generate_private_key(65537, rsa_bits)
        builder = _builder(_named(name), self._name, key, self._key)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        if hosts:
            names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        stem = self._directory / (file or name)
        pair = Pair(stem.with_suffix(".crt"), stem.with_suffix(".key"), certificate.serial_number)
        pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password)
                if password
                else serialization.NoEncryption(),
            )
        )
        return pair

    def revoke(self, *pairs: Pair) -> Path:
        """The list of what is revoked, as a file."""
        now = datetime.now(UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name)
        builder = builder.add_extension(_identifier(self._key), critical=False)
        builder = builder.add_extension(x509.CRLNumber(1), critical=False)
        builder = builder.last_update(now - timedelta(hours=1)).next_update(now + timedelta(days=1))
        for pair in pairs:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(pair.serial)
                .revocation_date(now - timedelta(hours=1))
                .build()
            )
        path = self._directory / "revoked.pem"
        revoked = builder.sign(self._key, hashes.SHA256())
        path.write_bytes(revoked.public_bytes(serialization.Encoding.PEM))
        return path


def client_context(authority: Path, pair: Pair | None = None) -> ssl.SSLContext:
    """The context of a client that trusts this authority."""
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python does by itself since 3.13
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    return context


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    signer: ec.EllipticCurvePrivateKey,
) -> x509.CertificateBuilder:
    """The extensions of all certificates, as strict verification requires (RFC 5280)."""
    now = datetime.now(UTC)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(own, critical=False)
        .add_extension(_identifier(signer), critical=False)
    )


def _identifier(signer: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())


def _usage(*, signs: bool) -> x509.KeyUsage:
    """An authority signs certificates and lists; the others are of clients and servers."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
