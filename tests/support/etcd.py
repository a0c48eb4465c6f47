"""The etcd of this machine, if it has the v2 API: started on a directory, written to at random.

As a program it records the data that tests read: `python -m tests.support.etcd ETCD NAME` by an
etcd of some version, which is then in tests/migrate/NAME.tar.xz.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.server import PATIENCE_S, ROOT, Client, free_port

_RECORDED = ROOT / "tests" / "migrate"
RECORDED = _RECORDED / "recorded.tar.xz"
"""A data directory of etcd 3.4.23, with what it answered last."""
OTHERS = {version: _RECORDED / f"etcd-{version}.tar.xz" for version in ("3.3.25", "3.5.30")}
"""Data directories of other versions."""


TTLS = ("", 0, 1, 3600, 100_000)
FAR = ("", 0, 1, 3_000_000_000, 4_000_000_000)
"""What is recorded lives for a hundred years, or has ended."""


def free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


def installed() -> str:
    """The path of etcd; without it, or without its v2 API, a skip."""
    found = shutil.which("etcd")
    if found is None:
        pytest.skip("there is no etcd here")
    received = subprocess.run([found, "--help"], capture_output=True, text=True, check=False)
    if "--enable-v2" not in received.stdout + received.stderr:
        pytest.skip("this etcd has no v2 API")
    return found


class Etcd:
    """An etcd of one member, or one of several, on its directory."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        name: str = "default",
        cluster: str = "",
        peer: int = 0,
        program: str = "",
    ) -> None:
        self.directory = directory
        self.port, own = free_ports(2)
        self.peer = peer or own
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = Client(self.port)
        self._cluster = cluster or f"{name}=http://127.0.0.1:{self.peer}"
        self._name = name
        self._program = program
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> "Etcd":
        peer = f"http://127.0.0.1:{self.peer}"
        self._process = subprocess.Popen(
            [
                *(self._program or installed(), "--enable-v2=true", "--name", self._name),
                *("--data-dir", str(self.directory), "--initial-cluster", self._cluster),
                *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *(() if self._program else ("--logger", "zap", "--log-level", "panic")),
                *self._flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Wait until it has a leader."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if self.client.request("GET", "/health").json.get("health") == "true":
                    return
            except OSError:
                self.client.close()
            assert self._process is not None
            assert self._process.poll() is None, "etcd has ended"
            assert time.monotonic() < deadline, "etcd does not answer"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        self.client.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            process.wait(PATIENCE_S)


def write_at_random(
    client: Client, random: Random, count: int, ttls: Sequence[int | str] = TTLS
) -> int:
    """Send random requests of every kind; return how many were refused."""
    names = ["a", "b", "c d", "_h", "\u00fc/\u4e2d", "deep/er/still", "%41", "q?x"]
    refused = 0
    for number in range(count):
        key = "/" + "/".join(random.choice(names) for _ in range(random.randint(1, 3)))
        target = "/v2/keys" + quote(key)
        form: dict[str, object] = {}
        if random.random() < 0.8:
            form["value"] = random.choice(["", "x", f"value {number}", "\u00e9" * 9])
        if random.random() < 0.2:
            form["ttl"] = random.choice(ttls)
        if random.random() < 0.1:
            form["dir"] = "true"
        for name, values in (
            ("prevExist", ["true", "false"]),
            ("prevValue", ["x", "", f"value {number - 1}"]),
            ("prevIndex", [0, number, 5]),
            ("refresh", ["true"]),
        ):
            if random.random() < 0.15:
                form[name] = random.choice(values)
        method = random.choice(["PUT", "PUT", "PUT", "PUT", "POST", "DELETE"])
        if method == "DELETE":
            kept = ("dir", "prevValue", "prevIndex")
            query = "&".join(f"{name}={form[name]}" for name in kept if name in form)
            query += random.choice(["", "&recursive=true"])
            answer = client.request(method, f"{target}?{query.replace(' ', '%20')}")
        else:
            answer = client.request(method, target, form)
        refused += answer.status >= 400
    return refused


HIDDEN = ["_h"]


def state(client: Client) -> dict[str, Any]:
    """Every key that a server shows, hidden ones by their names, and its index."""
    shown: dict[str, Any] = {}
    index = 0
    waiting = ["/"]
    while waiting:
        key = waiting.pop()
        answer = client.request("GET", f"/v2/keys{quote(key)}")
        if answer.status == 404:
            continue
        index = answer.index
        node = answer.json["node"]
        nodes = {**{child["key"]: child for child in node.get("nodes", ())}}
        if key != "/":
            shown[key] = [node.get(name) for name in FIELDS]
        if node.get("dir"):
            waiting += [*nodes, *(f"{key.rstrip('/')}/{name}" for name in HIDDEN)]
    return {"index": index, "nodes": shown}


FIELDS = ("value", "dir", "createdIndex", "modifiedIndex", "expiration")


def trimmed(directory: Path) -> None:
    """Cut off what etcd has allocated ahead, but for some zeros; remove what is not read."""
    for path in directory.rglob("*"):
        if path.suffix == ".wal":
            content = path.read_bytes().rstrip(b"\0")
            path.write_bytes(content + bytes(1024 - len(content) % 512))
        elif path.suffix not in (".snap", "") or path.name == "db":
            path.unlink()


def record(scratch: Path, program: str) -> None:
    """Record a directory with a snapshot and some restarts, users and requests of v3."""
    etcd = Etcd(
        scratch / "single", "--snapshot-count=60", "--max-snapshots=1", program=program
    ).start()
    random = Random(17)
    write_at_random(etcd.client, random, 70, FAR)
    for name in ("root", "al"):
        body = json.dumps({"user": name, "password": "secret" + name, "roles": ["readers", "root"]})
        etcd.client.request("PUT", f"/v2/auth/users/{name}", body)
    role = {"role": "readers", "permissions": {"kv": {"read": ["/a/*", ""], "write": []}}}
    etcd.client.request("PUT", "/v2/auth/roles/readers", json.dumps(role))
    etcd.stop(signal.SIGKILL)
    etcd.start()
    etcd.client.request("POST", "/v3/kv/put", json.dumps({"key": "YQ==", "value": "YQ=="}))
    write_at_random(etcd.client, random, 40, FAR)
    # An update of a directory, which etcd 3.5 refuses.
    for form in ({"dir": "true"}, {"dir": "true", "prevExist": "true", "ttl": FAR[-1]}):
        etcd.client.request("PUT", "/v2/keys/updated", form)
    etcd.client.put("/last", "1")
    # What ends within a second has ended.
    time.sleep(3)
    received = state(etcd.client)
    etcd.stop()
    trimmed(etcd.directory)
    (etcd.directory / "told.json").write_text(json.dumps(received))


def main(program: str, name: str) -> int:
    with tempfile.TemporaryDirectory() as place:
        record(Path(place), program)
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:xz", preset=9) as archive:
            archive.add(place, ".")
        (_RECORDED / f"{name}.tar.xz").write_bytes(content.getvalue())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
