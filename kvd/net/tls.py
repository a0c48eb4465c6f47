"""TLS settings of the server: certificate, key, trusted authorities, and their reload.

The files are looked at when a connection comes, at most once a second: a certificate that has been
renewed is served without being told (etcd reads its files at each handshake). SIGHUP does the same
at once. Files that cannot be used change nothing; that is one line of log for each state of them.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvd.config.tls import TlsConfig
from kvd.net.self_signed import TlsUnusable, self_signed

log = logging.getLogger(__name__)

_VERSIONS = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}
_LOOK_S = 1.0
_OTHERS = 0o007


class Tls:
    """The current TLS context of new connections.

    Attributes:
        config: the settings.
        context: what the next connection uses.
    """

    def __init__(self, config: TlsConfig, directory: Path, hosts: Sequence[str]) -> None:
        """Read the files, or make a self-signed certificate.

        Args:
            config: the settings.
            directory: where a self-signed certificate is kept.
            hosts: the names and addresses that it is for.

        Raises:
            TlsUnusable: a file is missing, or is not what it should be.
        """
        self.config = config
        self._directory = directory
        self._hosts = hosts
        self._seen = self._state()
        self._looked_at = time.monotonic()
        self.context = self._read()
        self._seen = self._state()

    def current_context(self) -> ssl.SSLContext:
        """Return the context of a new connection, reloaded if the files have changed."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            state = self._state()
            if state != self._seen:
                self.reload()
        return self.context

    def reload(self) -> None:
        """Reload the files for new connections; on failure keep the current context."""
        self._seen = self._state()
        try:
            self.context = self._read()
        except TlsUnusable as error:
            log.error("certificate reload failed, keeping the current one: %s", error)  # noqa: TRY400 -- one line
        else:
            log.info("certificates reloaded: %s", ", ".join(map(str, self._files())))

    def _read(self) -> ssl.SSLContext:
        config = self.config
        if config.is_self_signed:
            cert, key = self_signed(self._directory, self._hosts, years=config.validity_years)
        else:
            cert, key = Path(config.cert_file), Path(config.key_file)
        return make_context(config, cert, key)

    def _files(self) -> list[Path]:
        config = self.config
        names = (config.cert_file, config.key_file, config.trusted_ca_file, config.crl_file)
        return [Path(name) for name in names if name]

    def _state(self) -> list[tuple[int, ...]]:
        """Inode, time and size of each file: a change of any means a reload."""
        state: list[tuple[int, ...]] = []
        for path in self._files():
            with suppress(OSError):
                status = path.stat()
                state.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return state


def make_context(config: TlsConfig, cert: Path, key: Path) -> ssl.SSLContext:
    """Return a context for the server's side.

    Raises:
        TlsUnusable: a file cannot be read, or is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    lowest, highest = config.versions
    context.minimum_version, context.maximum_version = _VERSIONS[lowest], _VERSIONS[highest]
    context.options |= ssl.OP_NO_RENEGOTIATION
    # A client that also speaks HTTP/2 learns that this server does not.
    context.set_alpn_protocols(["http/1.1"])
    if config.ciphers:
        try:
            context.set_ciphers(":".join(config.ciphers))
        except ssl.SSLError:
            raise TlsUnusable("--cipher-suites: this machine's OpenSSL has none of them") from None
    _load_certificate(context, cert, key)
    if config.trusted_ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, Path(config.trusted_ca_file))
    if config.crl_file:
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        _load_authorities(context, Path(config.crl_file))
    return context


def _load_certificate(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    for path in (cert, key):
        _require_readable(path)
    if key.stat().st_mode & _OTHERS:
        log.warning("%s: every user of this machine may read the private key", key)

    def refuse_password() -> str:
        raise TlsUnusable(f"{key}: the private key is encrypted; expected one without a password")

    try:
        context.load_cert_chain(cert, key, refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsUnusable(f"{key}: is not the private key of {cert}") from None
        if error.reason == "EE_KEY_TOO_SMALL":
            raise TlsUnusable(
                f"{cert}: its key is too small for this machine's OpenSSL; expected RSA of 2,048 "
                "bits or more, or an elliptic curve"
            ) from None
        raise TlsUnusable(
            f"{cert} and {key}: expected a certificate and its key in PEM; "
            f"OpenSSL says: {plain_reason(error)}"
        ) from None


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Load one file: certificates of authorities, or revocation lists."""
    _require_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsUnusable(
            f"{path}: expected certificates in PEM; OpenSSL says: {plain_reason(error)}"
        ) from None


def _require_readable(path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise TlsUnusable(f"{path}: {error.strerror}") from None


def plain_reason(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in plain words."""
    if error.reason:
        return error.reason.lower().replace("_", " ")
    # Python's own form, "[SSL] PEM lib (_ssl.c:3905)", says where in its source it was noticed.
    return re.sub(r"^\[\w+\] | \(\w+\.c:\d+\)$", "", error.strerror or str(error))
