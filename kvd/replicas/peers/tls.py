"""TLS between replicas: one certificate for both sides of their links.

The files are looked at again when a connection begins: a renewed certificate is used without a
restart. One that cannot be read then changes nothing, with a line of log.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)


class TlsFiles(Protocol):
    """The settings; empty paths for none."""

    @property
    def cert_file(self) -> str:
        """The certificate of this replica."""

    @property
    def key_file(self) -> str:
        """Its private key."""

    @property
    def trusted_ca_file(self) -> str:
        """Authorities that sign those of replicas; without, the system's."""

    @property
    def client_cert_auth(self) -> bool:
        """Whether a replica that connects needs a certificate."""


class LinkTls:
    """The TLS contexts of both sides."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            OSError, ssl.SSLError: one of them cannot be read, or is not what it should be.
        """
        self._files = files
        self._state = self._look()
        self._client, self._present = self._read()
        self.listening = self._read()[1]
        """The context of listeners, which gives each connection the present certificate."""
        self.listening.sni_callback = self._give_present

    @property
    def client(self) -> ssl.SSLContext:
        """The context of a connection that begins now."""
        self._refresh()
        return self._client

    def _give_present(
        self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        self._refresh()
        connection.context = self._present

    def _refresh(self) -> None:
        state = self._look()
        if state == self._state:
            return
        self._state = state
        try:
            self._client, self._present = self._read()
        except OSError as error:  # ssl.SSLError is one
            log.warning("the certificate for links is not renewed, the old one stays: %s", error)
        else:
            log.info("certificate for links renewed: %s", self._files.cert_file)

    def _read(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        files = self._files
        authorities = files.trusted_ca_file or None
        client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authorities)
        server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authorities)
        if files.client_cert_auth:
            server.verify_mode = ssl.CERT_REQUIRED
        for context in (client, server):
            if files.cert_file:
                context.load_cert_chain(files.cert_file, files.key_file or None)
        return client, server

    def _look(self) -> list[tuple[int, ...]]:
        """Inode, time and size of each file that is there."""
        files = self._files
        paths = [Path(name) for name in (files.cert_file, files.key_file) if name]
        state: list[tuple[int, ...]] = []
        for path in paths:
            try:
                status = path.stat()
            except OSError:
                state.append((0,))
            else:
                state.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return state
