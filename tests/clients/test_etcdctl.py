"""etcdctl 3.4 with the v2 API says the same of kvd as of a real etcd, command for command."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.clients.processes import Process, program, run, wait_for_port
from tests.support.server import Server, free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

COMMANDS = Path(__file__).with_name("etcdctl_commands.txt").read_text()
# Times and what is left of them, ids, and raft's own counts.
VARYING = [
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    # Long enough that nothing ends meanwhile, which would take an index, however slow the machine.
    (r'(TTL: |"ttl":)(3000|2\d{3})\b', r"\1SECONDS"),
    (r"(?m)^Raft-(Index|Term): .*\n?", ""),
    (r"\b[0-9a-f]{13,16}\b", "ID"),
    (r"(?m)^[\d/-]+ [\d:.]+ ", ""),
]


class Said(NamedTuple):
    """How a command ended."""

    status: int
    stdout: str
    stderr: str


class Subject:
    """A server, and what etcdctl says of it, made comparable."""

    def __init__(self, url: str, peer_url: str) -> None:
        self._url = url
        self._peer_url = peer_url

    def ask(self, line: str) -> Said:
        line = re.sub(r"\{(/[^}]*?)(-\d+)?\}", self._index_of, line)
        ended = self._run(*shlex.split(line))
        return Said(ended.returncode, self._same(ended.stdout), self._same(ended.stderr))

    def index(self, key: str) -> int:
        """The index at which a key was last modified."""
        shown = self._run("-o", "extended", "get", key).stdout
        found = re.search(r"Modified-Index: (\d+)", shown)
        assert found is not None, shown
        return int(found[1])

    def _index_of(self, found: re.Match[str]) -> str:
        return str(self.index(found[1]) + int(found[2] or 0))

    def _run(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        command = (program("etcdctl"), "--endpoints", self._url, *argv)
        return run(*command, environment={"ETCDCTL_API": "2"})

    def _same(self, text: str) -> str:
        """The text with everything named that differs between two servers by its nature."""
        text = text.replace(self._url, "URL").replace(self._peer_url, "PEER")
        for pattern, name in VARYING:
            text = re.sub(pattern, name, text)
        return text


@pytest.fixture
def etcd(start: Callable[..., Process], tmp_path: Path) -> Subject:
    port, peer_port = free_port(), free_port()
    url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    process = start(
        *(program("etcd"), "--enable-v2=true", "--data-dir", tmp_path / "etcd"),
        *("--listen-client-urls", url, "--advertise-client-urls", url),
        *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
        *("--initial-cluster", f"default={peer_url}"),
    )
    process.wait_for("ready to serve client requests")
    # Which costs an index, and may come later.
    process.wait_for("set the initial cluster version")
    wait_for_port(port, process.has_ended)
    return Subject(url, peer_url)


@pytest.fixture
def kvd(make_server: Callable[..., Server]) -> Subject:
    peer_url = "http://localhost:2380"
    server = make_server("--initial-advertise-peer-urls", peer_url).start()
    return Subject(server.url, peer_url)


def lines() -> list[str]:
    """The commands; a quoted value may go over several lines."""
    found: list[str] = []
    for line in COMMANDS.splitlines():
        if found and found[-1].replace('\\"', "").count('"') % 2:
            found[-1] += "\n" + line
        elif line and not line.startswith("#"):
            found.append(line)
    return found


def test_every_command_is_answered_as_by_etcd(etcd, kvd):
    count_alike(etcd, kvd)
    differing = [
        f"{line}\n  etcd {expected}\n  kvd  {found}"
        for line in lines()
        if (expected := etcd.ask(line)) != (found := kvd.ask(line))
    ]
    assert not differing, "\n".join(differing)


def count_alike(etcd: Subject, kvd: Subject) -> None:
    """Bring both to the same index: etcd has used some for itself when it begins."""
    etcd.ask("set /_counted x")
    expected = etcd.index("/_counted")
    kvd.ask("set /_counted x")
    while (found := kvd.index("/_counted")) < expected:
        kvd.ask("set /_counted x")
    assert found == expected
