"""Servers and clients with TLS: flags, handshakes, and what a connection shows."""

import contextlib
import http.client
import socket
import ssl

import pytest

from tests.support.certs import Pair
from tests.support.server import PATIENCE_S, Server

ON_ASYNCIO = (
    "import sys; sys.modules['uvloop'] = None; from kvd.__main__ import main; sys.exit(main())"
)
LOOPS = {"uvloop": ("-m", "kvd"), "asyncio": ("-c", ON_ASYNCIO)}
HTTPS = "https://127.0.0.1:0"
CONFIGURATION = 78
HANDSHAKE = b"\x16\x03\x01"


def flags(pair: Pair, *more: str) -> tuple[str, ...]:
    return ("--cert-file", str(pair.cert), "--key-file", str(pair.key), *more)


def served_serial(server: Server, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with connected(server, context) as tls:
        certificate = tls.getpeercert()
    assert certificate
    return int(str(certificate["serialNumber"]), 16)


def refusal(server: Server, context: ssl.SSLContext) -> str:
    """The reason that OpenSSL gives to a refused client."""
    client = server.client(tls=context)
    with pytest.raises(ssl.SSLError) as refused:
        client.request("GET", "/version")
    return refused.value.reason


def line_with(server: Server, text: str) -> str:
    """The one line of the log with a text; it is waited for."""
    server.wait_for_log(text)
    (line,) = [line for line in server.stderr.splitlines() if text in line]
    return line


def client_hello() -> bytes:
    """The first message of a client."""
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def connected(
    server: Server, context: ssl.SSLContext
) -> contextlib.AbstractContextManager[ssl.SSLSocket]:
    plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
    tls = context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    return contextlib.closing(tls)


def read_answer(answers) -> bytes:
    """One answer that says its length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += answers.readline()
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return answers.read(length)


def exchange(plain: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, step) -> None:
    """Send and receive until a step of OpenSSL is done."""
    while True:
        try:
            step()
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(65536))
        else:
            plain.sendall(outgoing.read())
            return


def is_served(server: Server, context: ssl.SSLContext) -> bool:
    try:
        return server.client(tls=context).request("GET", "/version").status == 200
    except (OSError, http.client.HTTPException):
        return False
