"""Requests with all that was said in return, over a connection that hides no failure."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_UNKNOWN_OUTCOME = "outcome unknown"

DISCONNECTED = (OSError, http.client.HTTPException, json.JSONDecodeError)
"""What a `Connection` raises when the server has gone, before a response or in the middle of it."""


@dataclass
class Request:
    """One request, when it was sent, and what came of it.

    Attributes:
        method: GET, PUT, POST or DELETE.
        key: an absolute path, such as `/app/port`.
        params: etcd's parameters, in the form of a PUT or POST and in the query of the others.
        start: `time.monotonic()` before it was sent.
        end: the same when the response was complete; infinity while there is none.
        status: HTTP's; 0 while there is no response.
        index: `X-Etcd-Index` of the response.
        body: the JSON of the response; None while there is none.
    """

    method: str
    key: str
    params: dict[str, str]
    start: float
    end: float = float("inf")
    status: int = 0
    index: int = 0
    body: Any = None

    @property
    def acked(self) -> bool:
        """Whether the write was acknowledged, or the read answered."""
        return self.status in (200, 201)

    @property
    def in_doubt(self) -> bool:
        """Whether it is a write that may have happened or not."""
        if self.method == "GET":
            return False
        return self.status == 0 or (self.status >= 500 and _UNKNOWN_OUTCOME in str(self.body))


class Connection:
    """One kept connection; each request becomes a `Request`, and is sent once.

    Args:
        url: `http://HOST:PORT`.
        requests: a list to which each request is appended before it is sent.
        timeout_s: seconds to wait for a response; then TimeoutError is raised.
    """

    def __init__(
        self, url: str, requests: list[Request] | None = None, *, timeout_s: float = 30.0
    ) -> None:
        address = urlsplit(url)
        if address.scheme != "http" or not address.hostname:
            raise ValueError(f"expected http://HOST:PORT, got {url!r}")
        self.requests = requests
        self._http = http.client.HTTPConnection(
            address.hostname, address.port or 80, timeout=timeout_s
        )

    def request(self, request: Request) -> Request:
        """Send a request and wait for the response, which is filled in.

        Raises:
            OSError, HTTPException, JSONDecodeError: `DISCONNECTED`; it stays without a response.
        """
        self.send(request)
        return self.receive(request)

    def send(self, request: Request) -> None:
        """Send a request; `receive` must come before the next one."""
        if self.requests is not None:
            self.requests.append(request)
        target, body = f"/v2/keys{request.key}", None
        if request.method in ("PUT", "POST"):
            body = urlencode(request.params).encode()
        elif request.params:
            target += "?" + urlencode(request.params)
        self._http.request(request.method, target, body, _FORM if body is not None else {})

    def receive(self, request: Request) -> Request:
        """Wait for the response to what was sent, and fill it in."""
        response = self._http.getresponse()
        body = json.loads(response.read())
        request.end = time.monotonic()
        request.status, request.body = response.status, body
        request.index = int(response.headers.get("X-Etcd-Index", 0))
        return request

    def put(self, key: str, value: str, **params: object) -> Request:
        """Set a key; `params` are etcd's (`ttl`, `prevExist`, ...)."""
        return self._ask("PUT", key, {"value": value} | params)

    def post(self, key: str, value: str, **params: object) -> Request:
        """Create a key in order below a directory."""
        return self._ask("POST", key, {"value": value} | params)

    def get(self, key: str, **params: object) -> Request:
        """Read a key."""
        return self._ask("GET", key, params)

    def delete(self, key: str, **params: object) -> Request:
        """Delete a key."""
        return self._ask("DELETE", key, params)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, key: str, params: dict[str, object]) -> Request:
        given = {name: str(value) for name, value in params.items()}
        return self.request(Request(method, key, given, time.monotonic()))
