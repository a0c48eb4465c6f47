"""A kvd in a process of its own, and HTTP clients, for tests of the public interface."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

ROOT = Path(__file__).parent.parent.parent
FORM = "application/x-www-form-urlencoded"
# A machine that is busy with other tests takes its time; nothing here waits longer than needed.
PATIENCE_S = 30.0
# Below what Linux gives to outgoing connections: no client takes one of these by chance.
_PORTS = range(15_000, 32_000)

# Becomes what systemd starts: LISTEN_PID is known only in there, and the descriptors begin at 3.
HANDED_OVER = """
import os, sys
for place, given in enumerate(sys.argv.pop(1).split(",")):
    os.dup2(int(given), 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
from kvd.__main__ import main
sys.exit(main())
"""

# What a person reads of a bug, as against a refusal.
_SIGNS_OF_A_BUG = (
    "Traceback",
    "Exception in callback",
    "was never retrieved",
    "was never awaited",
    "socket.send() raised",
)


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def index(self) -> int:
        """The etcd index, from the header."""
        return int(self.headers["x-etcd-index"])


class Client:
    """One keep-alive connection, opened when it is first needed and again when the server left."""

    def __init__(
        self, port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self._connection = (
            http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
            if tls is None
            else http.client.HTTPSConnection(host, port, timeout=PATIENCE_S, context=tls)
        )

    def request(
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | str | bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and read its answer; `body` as a mapping is sent as a form."""
        self._send(method, target, body, headers)
        try:
            response = self._connection.getresponse()
            return _answer(response, response.read())
        except (OSError, http.client.HTTPException):
            self.close()
            raise

    def get(self, key: str, **params: object) -> Answer:
        return self.request("GET", _target(key, params))

    def put(self, key: str, value: object = None, **params: object) -> Answer:
        """Set a key: the value and the other parameters go into the body, as a form."""
        form = params if value is None else {"value": value, **params}
        return self.request("PUT", f"/v2/keys{key}", form)

    def post(self, key: str, value: object, **params: object) -> Answer:
        return self.request("POST", f"/v2/keys{key}", {"value": value, **params})

    def delete(self, key: str, **params: object) -> Answer:
        return self.request("DELETE", _target(key, params))

    def close(self) -> None:
        self._connection.close()

    def _send(
        self,
        method: str,
        target: str,
        body: Mapping[str, object] | str | bytes | None,
        headers: Mapping[str, str] | None,
    ) -> None:
        sent = dict(headers or {})
        if isinstance(body, Mapping):
            body = urlencode(body)
        if body is not None:
            sent.setdefault("Content-Type", FORM)
        if isinstance(body, str):
            body = body.encode()
        self._connection.request(method, target, body, sent)


class Watch:
    """A watch on a connection of its own. Made when its headers have come."""

    def __init__(self, port: int, target: str, tls: ssl.SSLContext | None = None) -> None:
        self._client = Client(port, tls=tls)
        self._client._send("GET", target, None, None)
        self._response = self._client._connection.getresponse()
        self.head = _answer(self._response, b"")

    def body(self) -> bytes:
        """Everything the server has to say until it ends the answer properly.

        Raises:
            http.client.IncompleteRead: The connection ended first.
        """
        return self._response.read()

    def event(self) -> Any:
        """The next event of the stream, or the only one."""
        return json.loads(self._response.readline())

    def close(self) -> None:
        self._response.close()
        self._client.close()


class Server:
    """A kvd process over one data directory, which may be started again after it ended.

    Unless told otherwise it listens on a port that the system chooses, another at each start. The
    connections that were made through it are closed at the latest when it is stopped.

    With `forked` the process is forked from one that has imported kvd, in a sixth of the CPU time
    of a start: for tests of what a server does, not of how it is run.
    """

    def __init__(
        self,
        data_dir: Path,
        *flags: str,
        listen: str = "http://127.0.0.1:0",
        launch: Sequence[str] = ("-m", "kvd"),
        python: Path | str = sys.executable,
        environment: Mapping[str, str] | None = None,
        descriptors: Sequence[int] = (),
        cwd: Path = ROOT,
        forked: bool = False,
    ) -> None:
        self.cwd = cwd
        self.data_dir = data_dir
        self.launch = launch
        self.python = python
        self.environment = environment or {}
        self.descriptors = descriptors
        self.flags = flags
        self.listen = listen
        self.urls: list[str] = []
        self.stderr = ""
        self._is_forked = forked
        self._process: Any = None
        self._reader: threading.Thread | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._connections: list[Client | Watch] = []

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def port(self) -> int:
        port = urlsplit(self.url).port
        assert port is not None
        return port

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *flags: str) -> "Server":
        """Start the process and wait until it listens."""
        own = ("--data-dir", str(self.data_dir), "--listen-client-urls", self.listen)
        return self.start_as(*own, *self.flags, *flags)

    def start_as(self, *argv: str) -> "Server":
        """Start the process by exactly these flags."""
        command = [self.python, *self.launch, *argv]
        with self._changed:
            self.urls, self._ended = [], False
        if self._is_forked:
            # Not for all tests: the laboratory is large.
            from tests.crash.lab import nursery  # noqa: PLC0415

            self._process = nursery.fork("none", argv, env=self.environment, straces={})
        else:
            self._process = subprocess.Popen(
                command,
                cwd=self.cwd,
                env={**os.environ, **self.environment},
                pass_fds=self.descriptors,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
            )
        self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
        self._reader.start()
        expected = self.listen.count(",") + 1
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or len(self.urls) == expected, timeout=PATIENCE_S
            )
        assert len(self.urls) == expected, f"kvd does not listen; it says:\n{self.stderr}"
        return self

    def client(self, url: str = "", tls: ssl.SSLContext | None = None) -> Client:
        """A new client, of one of several URLs where one is named."""
        parts = urlsplit(url or self.url)
        assert parts.port is not None
        assert parts.hostname is not None
        client = Client(parts.port, parts.hostname, tls)
        self._connections.append(client)
        return client

    def watch(self, key: str, **params: object) -> Watch:
        return self.open(_target(key, {"wait": "true", **params}))

    def open(self, target: str, tls: ssl.SSLContext | None = None) -> Watch:
        """Start a request whose answer takes its time."""
        watch = Watch(self.port, target, tls)
        self._connections.append(watch)
        return watch

    def wait_for_log(self, text: str) -> None:
        """Wait until the log of the server holds a text."""
        with self._changed:
            found = self._changed.wait_for(lambda: text in self.stderr, timeout=PATIENCE_S)
        assert found, f"{text!r} is not in the log:\n{self.stderr}"

    def wait_for_watchers(self, count: int) -> None:
        """Wait until so many watches are registered, which nothing but the statistics tells."""
        connection = self.client()
        deadline = time.monotonic() + PATIENCE_S
        while connection.request("GET", "/v2/stats/store").json["watchers"] != count:
            assert time.monotonic() < deadline, f"there are never {count} watchers"
            time.sleep(0.005)

    def kill(self) -> None:
        """End the process as a power cut would, but for the page cache."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> int:
        """Ask the process to stop; its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end of the process; its exit status."""
        assert self._process is not None
        assert self._reader is not None
        status = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def stop(self) -> None:
        """End what is running, however, and fail on what looks like a bug in what it said."""
        for connection in self._connections:
            connection.close()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self.wait()
        for sign in _SIGNS_OF_A_BUG:
            assert sign not in self.stderr, self.stderr

    def _read(self, process: Any) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                with self._changed:
                    self.stderr += line
                    if "listening on" in line:
                        self.urls += re.findall(r"(?:https?|unixs?)://[^\s,\"]+", line)
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def free_port() -> int:
    """A free port on this machine."""
    while True:
        port = random.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def run_kvd(*argv: str, timeout_s: float = PATIENCE_S) -> "subprocess.CompletedProcess[str]":
    """Run a kvd that is expected to end."""
    return subprocess.run(
        [sys.executable, "-m", "kvd", *argv],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def handed_over(*sockets: socket.socket, **environment: str) -> dict[str, Any]:
    """The options of a Server that has these sockets handed over."""
    numbers = [given.fileno() for given in sockets]
    return {
        "launch": ("-c", HANDED_OVER, ",".join(map(str, numbers))),
        "descriptors": numbers,
        "environment": {"LISTEN_FDS": str(len(sockets)), **environment},
    }


def running(server: Server) -> Iterator[Server]:
    """The body of a fixture: a started server that is stopped at the end."""
    try:
        yield server.start()
    finally:
        server.stop()


def _target(key: str, params: Mapping[str, object]) -> str:
    return f"/v2/keys{key}" + ("?" + urlencode(params) if params else "")


def _answer(response: http.client.HTTPResponse, body: bytes) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body)
