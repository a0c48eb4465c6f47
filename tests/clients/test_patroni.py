"""Patroni 4 keeps two PostgreSQL nodes in order through kvd: elections, a switchover, crashes.

What happens is awaited by watching the keys that Patroni writes; what must be true is asked of
Patroni and of PostgreSQL.
"""

import contextlib
import http.client
import json
import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.processes import CACHE, Process, program, run
from tests.support.server import Server, free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(400)]

SCOPE = "/service/acc"
# A leader that has died is noticed after so long; one whose store is gone steps down after RETRY_S.
TTL_S = 30
RETRY_S = 10
# The same while kvd is started again, which takes a busy machine longer than that.
PATIENT_TTL_S = 180
PATIENT_RETRY_S = 80
# A cluster is made, a node is copied, a lock runs out: on a busy machine.
PATIENCE_S = 120.0


class Node:
    """A Patroni with its PostgreSQL."""

    def __init__(self, directory: Path, name: str, server: Server, bin_dir: str) -> None:
        self.name = name
        self.data_dir = directory / name
        self.config = directory / f"{name}.yml"
        self._rest_port, self._port = free_port(), free_port()
        self._bin_dir = bin_dir
        self._patroni: Process | None = None
        self.config.write_text(json.dumps(self._settings(directory, server)))  # JSON is YAML

    def start(self, start: Callable[..., Process]) -> None:
        self._patroni = start(
            CACHE / "python" / "bin" / "patroni",
            self.config,
            user=user(),
            cwd=self.config.parent,
        )

    def said(self) -> str:
        return self._patroni.text if self._patroni is not None else ""

    def crash(self) -> None:
        """End Patroni and PostgreSQL at once, as a power cut would."""
        assert self._patroni is not None
        postmaster = self._postmaster()
        self._patroni.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(postmaster, signal.SIGKILL)

    def end_patroni(self) -> None:
        """End Patroni alone, which in a paused cluster leaves PostgreSQL running."""
        assert self._patroni is not None
        self._patroni.signal(signal.SIGTERM)
        assert self._patroni.wait() == 0

    def stop(self) -> None:
        """End both, however they are, and wait for it."""
        if self._patroni is not None:
            self._patroni.kill()
        command = [f"{self._bin_dir}/pg_ctl", "stop", "-m", "immediate", "-w", "-D", self.data_dir]
        if (self.data_dir / "postmaster.pid").exists():
            as_user = ["runuser", "-u", "postgres", "--"] if user() else []
            run(*as_user, *command)

    def ask(self, path: str, method: str = "GET", body: object = None) -> tuple[int, Any]:
        """Ask Patroni's own API; status and JSON, or what it says instead."""
        connection = http.client.HTTPConnection("127.0.0.1", self._rest_port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text

    def query(self, sql: str) -> str:
        """Ask PostgreSQL; what psql prints."""
        ended = run(
            *(f"{self._bin_dir}/psql", "-XAtq", "-h", "127.0.0.1", "-p", str(self._port)),
            *("-U", "postgres", "-d", "postgres", "-c", sql),
            environment={"PGPASSWORD": "secret", "PGCONNECT_TIMEOUT": "10"},
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def _postmaster(self) -> int:
        return int((self.data_dir / "postmaster.pid").read_text().split()[0])

    def _settings(self, directory: Path, server: Server) -> dict[str, Any]:
        return {
            "scope": "acc",
            "name": self.name,
            "restapi": {
                "listen": f"127.0.0.1:{self._rest_port}",
                "connect_address": f"127.0.0.1:{self._rest_port}",
            },
            "etcd": {"host": f"127.0.0.1:{server.port}"},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL_S,
                    "loop_wait": 2,
                    "retry_timeout": RETRY_S,
                    "postgresql": {"use_pg_rewind": True},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self._port}",
                "connect_address": f"127.0.0.1:{self._port}",
                "data_dir": str(self.data_dir),
                "bin_dir": self._bin_dir,
                "pgpass": str(directory / f"{self.name}.pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": "secret"},
                    "replication": {"username": "replicator", "password": "secret"},
                },
                "pg_hba": [
                    "host all all 127.0.0.1/32 md5",
                    "host replication all 127.0.0.1/32 md5",
                ],
                "parameters": {"unix_socket_directories": str(directory), "fsync": "off"},
            },
        }


def user() -> str | None:
    """Whom PostgreSQL runs as: it refuses root."""
    return "postgres" if os.geteuid() == 0 else None


def skip_what_is_missing() -> str:
    """Return PostgreSQL's directory of programs, or skip."""
    bin_dir = run(program("pg_config"), "--bindir").stdout.strip()
    patroni = CACHE / "python" / "bin" / "patroni"
    if not patroni.exists() or not Path(bin_dir, "initdb").exists():
        pytest.skip("there is no Patroni or no PostgreSQL; scripts/setup-clients installs them")
    if user() is not None:
        with contextlib.suppress(KeyError):
            pwd.getpwnam("postgres")
            if run("runuser", "-u", "postgres", "--", patroni, "--version").returncode == 0:
                return bin_dir
        pytest.skip(f"the user postgres cannot run {patroni}")
    return bin_dir


class Cluster:
    """Two nodes on one kvd, and what is seen of them in it."""

    def __init__(self, server: Server, nodes: list[Node], start: Callable[..., Process]) -> None:
        self.server = server
        self.nodes = {node.name: node for node in nodes}
        self._start = start

    def start(self, name: str) -> None:
        """Start a node, for the first time or again."""
        self.nodes[name].start(self._start)

    def wait_for(self, what: str, holds: Callable[[dict[str, str]], bool]) -> dict[str, str]:
        """Watch Patroni's keys until they fulfil a condition; the keys and their values."""
        deadline = Deadline(PATIENCE_S)
        while True:
            keys, index = self._keys()
            if holds(keys):
                return keys
            watch = f"/v2/keys{SCOPE}?wait=true&recursive=true&waitIndex={index + 1}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert deadline.left_s > 0, f"never {what}: {keys}\n{self._said()}"
                with contextlib.closing(deadline.client(self.server)) as client:
                    client.request("GET", watch)
                    client.getresponse().read()

    def leader(self) -> str:
        """Who holds the lock, once somebody does."""
        return self.wait_for("a leader", lambda keys: "leader" in keys)["leader"]

    def wait_for_order(self, leader: str) -> None:
        """Wait until this one leads and every other node streams from it."""

        def holds(keys: dict[str, str]) -> bool:
            members = {name: json.loads(keys.get(f"members/{name}", "{}")) for name in self.nodes}
            return keys.get("leader") == leader and all(
                self._is_in_order(member, leads=name == leader) for name, member in members.items()
            )

        self.wait_for(f"{leader} leading with a replica behind it", holds)

    @staticmethod
    def _is_in_order(member: dict[str, Any], *, leads: bool) -> bool:
        if member.get("state") != "running":
            return False
        if leads:
            return member["role"] == "primary"
        return member["role"] == "replica" and member.get("replication_state") == "streaming"

    def be_patient(self, ttl_s: int, retry_s: int) -> None:
        """Change for how long a leader holds the lock, and waits for its store; wait for both."""
        leader = self.nodes[self.leader()]
        settings = {"ttl": ttl_s, "retry_timeout": retry_s}
        assert leader.ask("/config", "PATCH", settings)[0] == 200

        def holds(_: dict[str, str]) -> bool:
            with contextlib.closing(self.server.client()) as client:
                left_s = client.get(f"{SCOPE}/leader").json["node"]["ttl"]
            return left_s > TTL_S if ttl_s > TTL_S else left_s <= ttl_s

        self.wait_for(f"a lock for {ttl_s} s", holds)

    def _keys(self) -> tuple[dict[str, str], int]:
        with contextlib.closing(self.server.client()) as client:
            answer = client.get(f"{SCOPE}/", recursive="true")
        found: dict[str, str] = {}
        nodes = [answer.json["node"]] if answer.status == 200 else []
        while nodes:
            node = nodes.pop()
            nodes += node.get("nodes", [])
            if "value" in node:
                found[node["key"].removeprefix(f"{SCOPE}/")] = node["value"]
        return found, answer.index

    def _said(self) -> str:
        return "\n".join(f"{node.name}:\n{node.said()[-3000:]}" for node in self.nodes.values())


class Deadline:
    """A time by which something must have happened."""

    def __init__(self, seconds: float) -> None:
        self._end = os.times().elapsed + seconds

    @property
    def left_s(self) -> float:
        return self._end - os.times().elapsed

    def client(self, server: Server) -> http.client.HTTPConnection:
        """A connection on which nothing is waited for longer than that."""
        return http.client.HTTPConnection("127.0.0.1", server.port, timeout=self.left_s)


@pytest.fixture
def cluster(fresh_server: Server, start: Callable[..., Process]) -> Iterator[Cluster]:
    """Two nodes, the first of which leads."""
    bin_dir = skip_what_is_missing()
    fresh_server.listen = fresh_server.url  # of its next starts
    directory = Path(tempfile.mkdtemp(prefix="kvd-patroni-"))
    if user() is not None:
        shutil.chown(directory, "postgres", "postgres")
    nodes = [Node(directory, name, fresh_server, bin_dir) for name in ("pg0", "pg1")]
    for node in nodes:
        if user() is not None:
            shutil.chown(node.config, "postgres", "postgres")
    try:
        cluster = Cluster(fresh_server, nodes, start)
        cluster.start("pg0")
        assert cluster.leader() == "pg0"
        cluster.start("pg1")
        cluster.wait_for_order("pg0")
        yield cluster
    finally:
        for node in nodes:
            node.stop()
        shutil.rmtree(directory)


def assert_leads(cluster: Cluster, leader: str) -> None:
    """All agree on who leads: the store, Patroni's API, and PostgreSQL itself."""
    cluster.wait_for_order(leader)
    for name, node in cluster.nodes.items():
        assert node.ask("/primary")[0] == (200 if name == leader else 503)
        assert node.query("SELECT pg_is_in_recovery()") == ("f" if name == leader else "t")


def test_elections_switchover_and_crashes(cluster):
    first, second = cluster.nodes["pg0"], cluster.nodes["pg1"]
    assert_leads(cluster, "pg0")
    first.query("CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)")

    # A switchover: the old leader follows the new one.
    status, said = second.ask("/switchover", "POST", {"leader": "pg0", "candidate": "pg1"})
    assert (status, said) == (200, 'Successfully switched over to "pg1"')
    assert_leads(cluster, "pg1")
    assert second.query("SELECT n FROM kept") == "1"
    timeline = second.query("SELECT timeline_id FROM pg_control_checkpoint()")

    # kvd is killed and comes back: the lock is as it was, and is held on to.
    cluster.be_patient(PATIENT_TTL_S, PATIENT_RETRY_S)
    held = cluster.server.client().get(f"{SCOPE}/leader").json["node"]
    cluster.server.kill()
    cluster.server.start()
    found = cluster.server.client().get(f"{SCOPE}/leader").json["node"]
    assert (found["value"], found["createdIndex"]) == ("pg1", held["createdIndex"])
    refresh = cluster.server.watch(f"{SCOPE}/leader", waitIndex=found["modifiedIndex"] + 1)
    assert refresh.event()["action"] == "compareAndSwap"
    assert_leads(cluster, "pg1")
    assert second.query("SELECT timeline_id FROM pg_control_checkpoint()") == timeline
    second.query("INSERT INTO kept VALUES (2)")

    # The leader dies: its lock runs out, and the other one takes over.
    cluster.be_patient(TTL_S, RETRY_S)
    last = cluster.server.client().get(f"{SCOPE}/leader").index
    watch = cluster.server.watch(f"{SCOPE}/leader", waitIndex=last + 1, stream="true")
    second.crash()
    actions = []
    while actions[-2:] != ["expire", "create"]:
        event = watch.event()
        actions.append(event["action"])
    assert event["node"]["value"] == "pg0"
    assert set(actions[:-2]) <= {"compareAndSwap"}
    cluster.wait_for(
        "pg0 as primary",
        lambda keys: json.loads(keys.get("members/pg0", "{}")).get("role") == "primary",
    )
    first.query("INSERT INTO kept VALUES (3)")

    # It comes back, as a replica, with all that was written meanwhile.
    cluster.start("pg1")
    assert_leads(cluster, "pg0")
    assert first.query("SELECT count(*) FROM kept") == "3"
    assert_replicated(first, second)


def assert_replicated(leader: Node, replica: Node) -> None:
    """What the leader has is on the replica: it is asked to wait for that by PostgreSQL itself."""
    reached = leader.query("SELECT pg_current_wal_lsn()")
    behind = f"SELECT pg_last_wal_replay_lsn() >= '{reached}'::pg_lsn"
    deadline = Deadline(PATIENCE_S)
    while replica.query(behind) != "t":
        assert deadline.left_s > 0
    assert replica.query("SELECT count(*) FROM kept") == "3"
