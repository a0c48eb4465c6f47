"""The etcdctl of this machine, if there is one that speaks v2."""

import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial

import pytest

from tests.support.certs import Authority
from tests.support.server import PATIENCE_S, Server

Ended = subprocess.CompletedProcess[str]

# python-etcd says `_log.warn` where the logging module wants `_log.warning`.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:etcd.*")


def _speaks_v2() -> bool:
    if shutil.which("etcdctl") is None:
        return False
    environment = {**os.environ, "ETCDCTL_API": "2"}
    version = subprocess.run(
        ["etcdctl", "--version"], env=environment, capture_output=True, text=True, check=False
    )
    return "API version: 2" in version.stdout


@pytest.mark.skipif(not _speaks_v2(), reason="there is no etcdctl that speaks the v2 API")
class TestEtcdctl:
    @pytest.fixture
    def etcdctl_of(self) -> Callable[[Server], Callable[..., Ended]]:
        """Makes what runs etcdctl on a server with a command line and returns how it ended."""

        def run(server: Server, *argv: str) -> Ended:
            return subprocess.run(
                self.command(server, *argv),
                env={**os.environ, "ETCDCTL_API": "2"},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )

        return lambda server: partial(run, server)

    @pytest.fixture
    def etcdctl(
        self, server: Server, etcdctl_of: Callable[[Server], Callable[..., Ended]]
    ) -> Callable[..., Ended]:
        """Runs etcdctl with a command line and returns how it ended."""
        return etcdctl_of(server)

    @staticmethod
    def command(server: Server, *argv: str) -> list[str]:
        return ["etcdctl", "--endpoints", server.url, *argv]

    def start(self, server: Server, *argv: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(server, *argv),
            env={**os.environ, "ETCDCTL_API": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def test_values_are_set_read_updated_and_removed(self, etcdctl):
        assert etcdctl("set", "/values/a", "Hello world").stdout == "Hello world\n"
        assert etcdctl("get", "/values/a").stdout == "Hello world\n"
        assert etcdctl("update", "/values/a", "2").stdout == "2\n"
        assert etcdctl("set", "/values/a", "3", "--swap-with-value", "2").returncode == 0
        refused = etcdctl("set", "/values/a", "4", "--swap-with-value", "2")
        assert refused.returncode != 0
        assert "101: Compare failed ([2 != 3])" in refused.stderr
        assert etcdctl("rm", "/values/a").stdout == "PrevNode.Value: 3\n"
        missing = etcdctl("get", "/values/a")
        assert missing.returncode != 0
        assert "100: Key not found (/values/a)" in missing.stderr

    def test_mk_makes_what_is_not_there(self, etcdctl):
        assert etcdctl("mk", "/mk/a", "1").stdout == "1\n"
        refused = etcdctl("mk", "/mk/a", "2")
        assert "105: Key already exists (/mk/a)" in refused.stderr
        assert etcdctl("mk", "--in-order", "/mk/queue", "x").stdout == "x\n"

    def test_directories_are_made_listed_and_removed(self, etcdctl):
        assert etcdctl("mkdir", "/dirs").returncode == 0
        assert "105" in etcdctl("mkdir", "/dirs").stderr
        assert etcdctl("setdir", "/dirs/b").returncode == 0
        assert etcdctl("set", "/dirs/a/1", "x").returncode == 0
        assert etcdctl("ls", "--sort", "/dirs").stdout == "/dirs/a\n/dirs/b\n"
        listed = etcdctl("ls", "-r", "--sort", "-p", "/dirs").stdout
        assert listed == "/dirs/a/\n/dirs/a/1\n/dirs/b/\n"
        assert "102: Not a file (/dirs/a)" in etcdctl("rm", "/dirs/a").stderr
        assert "108: Directory not empty (/dirs/a)" in etcdctl("rmdir", "/dirs/a").stderr
        assert etcdctl("rmdir", "/dirs/b").returncode == 0
        assert etcdctl("rm", "-r", "/dirs").returncode == 0
        assert "100: Key not found (/dirs)" in etcdctl("ls", "/dirs").stderr

    def test_a_ttl_can_be_given_to_keys_and_directories(self, etcdctl):
        assert etcdctl("set", "--ttl", "60", "/ttl/a", "x").returncode == 0
        assert etcdctl("updatedir", "--ttl", "60", "/ttl").returncode == 0
        shown = etcdctl("-o", "extended", "get", "/ttl/a").stdout
        assert "TTL: 60" in shown or "TTL: 59" in shown

    def test_users_and_roles_are_administered_and_asked_for(self, fresh_server, etcdctl_of):
        etcdctl = etcdctl_of(fresh_server)
        root = ("--username", "root:secret")
        assert etcdctl("auth", "enable").stderr == (
            "auth: No root user available, please create one\n"
        )
        assert etcdctl("user", "add", "root:secret").stdout == "User root created\n"
        assert etcdctl("user", "add", "al:pw").stdout == "User al created\n"
        assert etcdctl("role", "add", "rw").stdout == "Role rw created\n"
        assert etcdctl("role", "add", "rw").stderr == "Role rw already exists\n"
        granted = etcdctl("role", "grant", "rw", "--path", "/al/*", "--readwrite")
        assert granted.stdout == "Role rw updated\n"
        shown = "Role: rw\nKV Read:\n\t/al/*\nKV Write:\n\t/al/*\n"
        assert etcdctl("role", "get", "rw").stdout == shown
        assert etcdctl("user", "grant", "--roles", "rw", "al").stdout == "User al updated\n"
        assert etcdctl("user", "get", "al").stdout == "User: al\nRoles:  rw\n"
        assert etcdctl("auth", "enable").stdout == "Authentication Enabled\n"
        assert etcdctl("user", "list").stderr == "Insufficient credentials\n"
        assert etcdctl(*root, "user", "list").stdout == "al\nroot\n"
        revoked = etcdctl(*root, "role", "revoke", "guest", "--path", "/*", "--readwrite")
        assert revoked.stdout == "Role guest updated\n"
        assert etcdctl("--username", "al:pw", "set", "/al/x", "1").stdout == "1\n"
        denied = "110: The request requires user authentication (Insufficient credentials)"
        assert denied in etcdctl("--username", "al:pw", "set", "/other", "1").stderr
        assert denied in etcdctl("--username", "al:wrong", "get", "/al/x").stderr
        assert denied in etcdctl("get", "/al/x").stderr
        assert "is healthy" in etcdctl(*root, "cluster-health").stdout
        assert etcdctl(*root, "user", "remove", "al").stdout == "User al removed\n"
        assert etcdctl(*root, "auth", "disable").stdout == "Authentication Disabled\n"

    def test_a_client_certificate_is_asked_for_and_names_the_user(
        self, make_server, etcdctl_of, tmp_path
    ):
        authority = Authority(tmp_path / "authority")
        own = authority.sign("server", "127.0.0.1")
        server = make_server(
            *("--cert-file", str(own.cert), "--key-file", str(own.key)),
            *("--trusted-ca-file", str(authority.cert), "--client-cert-auth"),
            listen="https://127.0.0.1:0",
        ).start()
        etcdctl = partial(etcdctl_of(server), "--ca-file", str(authority.cert))

        def holder_of(name: str) -> Callable[..., Ended]:
            pair = authority.sign(name)
            return partial(etcdctl, "--cert-file", str(pair.cert), "--key-file", str(pair.key))

        root, alice, stranger = map(holder_of, ("root", "alice", "stranger"))
        refused = etcdctl("set", "/tls/a", "1")
        assert refused.returncode != 0
        assert "certificate required" in refused.stderr
        assert stranger("set", "/tls/a", "1").stdout == "1\n"
        assert stranger("get", "/tls/a").stdout == "1\n"
        assert f"healthy result from {server.url}" in stranger("cluster-health").stdout
        for line in (
            *("user add root:secret", "user add alice:secret", "role add rw"),
            *("role grant rw --path /tls/* --readwrite", "user grant --roles rw alice"),
            *("auth enable", "role revoke guest --path /* --readwrite"),
        ):
            assert root(*line.split()).returncode == 0, line
        assert alice("set", "/tls/a", "2").stdout == "2\n"
        assert "Insufficient credentials" in alice("user", "list").stderr
        assert "Insufficient credentials" in stranger("get", "/tls/a").stderr
        assert stranger("--username", "alice:secret", "get", "/tls/a").stdout == "2\n"
        assert root("user", "list").stdout == "alice\nroot\n"

    def test_a_watch_prints_the_next_change(self, server, etcdctl):
        with self.start(server, "watch", "/watch", "-r") as watch:
            server.wait_for_watchers(1)
            etcdctl("set", "/watch/a", "told")
            assert watch.stdout.read() == "[set] /watch/a\ntold\n"

    def test_a_watch_looks_back(self, server, client, etcdctl):
        index = client.put("/back", "1").index
        client.put("/back", "2")
        assert etcdctl("watch", "/back", "--after-index", str(index)).stdout == "2\n"

    def test_exec_watch_runs_its_command_for_each_change(self, server, client):
        index = client.put("/exec/a", "0").index
        argv = ["exec-watch", "-r", "--after-index", str(index), "--", "/exec"]
        argv += ["--", "sh", "-c", 'echo "$ETCD_WATCH_ACTION $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"']
        with self.start(server, *argv) as watch:
            try:
                for number in (1, 2, 3):
                    client.put("/exec/a", number)
                    assert watch.stdout.readline() == f"set /exec/a {number}\n"
            finally:
                watch.kill()

    def test_the_cluster_is_healthy_and_has_one_member(self, server, etcdctl):
        health = etcdctl("cluster-health")
        assert health.returncode == 0
        assert "cluster is healthy" in health.stdout
        assert server.url in health.stdout
        members = etcdctl("member", "list").stdout
        assert members.count("\n") == 1
        assert "name=default" in members
        assert f"clientURLs={server.url} isLeader=true" in members
