"""Connection of a call to its server: the client's operations, taken with blocking sockets."""

from __future__ import annotations

import sys
from time import sleep
from typing import TYPE_CHECKING, TypeVar

from kvd.client.operations import Given, Operations
from kvd.client.sockets import Driver
from kvd.client.wire import Connect, Endpoint, Operation, Reply, Send, Step
from kvd.ctl.credentials import credentials
from kvd.ctl.failures import USAGE, Failure, failure
from kvd.ctl.settings import Settings
from kvd.lines import printable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

T = TypeVar("T")


class Session:
    """A connection to the server that the settings name.

    Attributes:
        operations: the operations of the client; see `kvd.client.operations`.
        driver: takes their steps.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises Failure: the settings cannot be used."""
        urls = settings.endpoints
        tls = _tls(settings, is_used=any(url.startswith("https:") for url in urls))
        name, password = credentials(settings)
        total_s = settings.seconds("total_timeout")
        try:
            self.operations = Operations(
                urls,
                username=name,
                password=password,
                timeout=min(total_s, 10**6),
                namespace="",
                connections=1,
            )
        except ValueError as error:
            raise failure(str(error)) from None
        exchanges = self.operations.exchanges
        exchanges.connect_timeout = settings.seconds("timeout")
        # A user at a terminal retries better than a program that is silent meanwhile.
        exchanges.rounds = 1
        self.driver = _Tracing(tls) if settings.is_on("debug") else Driver(tls)

    def close(self) -> None:
        """Close the connection."""
        self.operations.exchanges.close()

    def run(self, operation: Operation[T]) -> T:
        """Return the result of an operation of the client."""
        return self.driver.run(operation, sleep)

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Given | None = None,
        form: Given | None = None,
        body: bytes = b"",
        content_type: str = "",
    ) -> Reply:
        """Return the answer to a request.

        Raises:
            KvdError: it was refused, or no answer came.
        """
        return self.run(
            self.operations.call(
                method, path, query=query, form=form, body=body, content_type=content_type
            )
        )

    def path(self, key: str) -> str:
        """Return the path of a key."""
        return self.operations.path(key)


class _Tracing(Driver):
    """A driver that prints each request as a command of curl, for `--debug`."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(tls)
        self._at: dict[object, Endpoint] = {}

    def _take(self, step: Step, sleep: Callable[[float], object]) -> object:
        if isinstance(step, Send):
            _trace(self._at.get(step.connection), step.data)
        done = super()._take(step, sleep)
        if isinstance(step, Connect):
            self._at[done] = step.endpoint
        return done


def _trace(endpoint: Endpoint | None, request: bytes) -> None:
    head, _, body = request.partition(b"\r\n\r\n")
    method, target, _ = head.partition(b"\r\n")[0].decode("ascii").split(" ")
    where = ""
    if endpoint is not None:
        where = f"{'https' if endpoint.tls else 'http'}://{endpoint.authority}"
    through = f" --unix-socket {endpoint.path}" if endpoint is not None and endpoint.path else ""
    data = f' -d "{body.decode("utf-8", "replace")}"' if body else ""
    if target.startswith("/v2/auth/"):  # new passwords
        data = ' -d "..."' if body else ""
    line = f"cURL Command: curl{through} -X {method} {where}{target}{data}"
    sys.stderr.write(printable(line) + "\n")


def _tls(settings: Settings, *, is_used: bool) -> ssl.SSLContext | None:
    """Return the context for TLS, where files are named for it."""
    ca, cert, key = (settings.text(name) for name in ("ca_file", "cert_file", "key_file"))
    for file in (cert, key, ca):
        if file is not None:
            try:
                with open(file, "rb"):  # noqa: PTH123 -- etcdctl's sentence has the name as given
                    pass
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise Failure(printable(f"open {file}: {reason}"), USAGE) from None
    if not is_used or (ca is None and cert is None):
        return None
    import ssl  # noqa: PLC0415 -- 10 ms that calls without TLS need not wait for

    from kvd.client.sockets import tls_context  # noqa: PLC0415 -- see there

    try:
        context = ssl.create_default_context(cafile=ca) if ca else tls_context(None)
        if cert is not None:
            context.load_cert_chain(cert, key or cert)
    except (OSError, ssl.SSLError) as error:
        raise failure(f"{cert or ca}: {error.strerror or error}") from None
    return context
