"""Requests for raw values."""

import os

from tests.support.memory import MIB
from tests.support.server import Answer, Client

VALUES = {
    "empty": b"",
    "text": "Grüße\n".encode(),
    "markup": b"<script>alert(1)</script>",
    "bytes": bytes(range(256)) * 3,
    "large text": "é".encode() * MIB,
    "large, cut in a character": b"x" * (256 * 1024 - 1) + "é".encode() * 10,
    "large bytes": os.urandom(MIB),
    "no text at its end": b"x" * MIB + b"\xff",
    "largest": os.urandom(10 * MIB - 1),
}


def put(client: Client, key: str, value: bytes, query: str = "", **headers: str) -> Answer:
    """PUT a value as it is; `if_match` is the header If-Match."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return client.request("PUT", f"/v2/raw{key}{query}", value, {"Content-Type": "a/b"} | named)


def get(client: Client, key: str, method: str = "GET", **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return client.request(method, f"/v2/raw{key}", headers=named)
