"""Clients that were written for etcd: python-etcd 0.4.5 and etcdctl with the v2 API."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial

import etcd
import pytest
from etcd.auth import Auth, EtcdRole, EtcdUser

from tests.support.certs import Authority
from tests.support.server import PATIENCE_S, Server

Ended = subprocess.CompletedProcess[str]
AL = {"username": "al", "password": "other"}

# python-etcd says `_log.warn` where the logging module wants `_log.warning`.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:etcd.*")


class Background:
    """A call in a thread of its own; `result()` waits for what it returns, or raises."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._result: object = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=[call], daemon=True)
        self._thread.start()

    def result(self) -> object:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the call does not end"
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self, call: Callable[[], object]) -> None:
        try:
            self._result = call()
        except Exception as error:  # noqa: BLE001 -- it is raised again in result()
            self._error = error


class TestPythonEtcd:
    @pytest.fixture
    def client(self, server: Server) -> Iterator[etcd.Client]:
        client = etcd.Client(host="127.0.0.1", port=server.port, read_timeout=int(PATIENCE_S))
        yield client
        client.http.clear()

    @pytest.fixture
    def other(self, server: Server) -> Iterator[etcd.Client]:
        client = etcd.Client(host="127.0.0.1", port=server.port, read_timeout=int(PATIENCE_S))
        yield client
        client.http.clear()

    def test_a_value_is_written_and_read(self, client):
        written = client.write("/rw/a", "ä & <b>")
        assert (written.action, written.newKey) == ("set", True)
        read = client.read("/rw/a")
        assert read.value == "ä & <b>"
        assert read.modifiedIndex == written.modifiedIndex
        assert read.etcd_index >= read.modifiedIndex
        again = client.write("/rw/a", "2")
        assert not again.newKey
        assert again._prev_node.value == "ä & <b>"

    def test_membership_is_asked_with_in(self, client):
        client.write("/in/a", "1")
        assert "/in/a" in client
        assert "/in/b" not in client

    def test_errors_are_mapped_to_their_exceptions(self, client):
        client.write("/errors/a", "1")
        with pytest.raises(etcd.EtcdKeyNotFound) as missing:
            client.read("/errors/b/c")
        assert missing.value.payload["cause"] == "/errors/b"
        with pytest.raises(etcd.EtcdAlreadyExist):
            client.write("/errors/a", "2", prevExist=False)
        with pytest.raises(etcd.EtcdNotDir):
            client.write("/errors/a/b", "1")
        with pytest.raises(etcd.EtcdNotFile):
            client.write("/errors", "1")
        with pytest.raises(etcd.EtcdDirNotEmpty):
            client.delete("/errors", dir=True)
        with pytest.raises(etcd.EtcdRootReadOnly):
            client.delete("/", recursive=True)

    def test_test_and_set_swaps_only_the_right_value(self, client):
        client.write("/cas/a", "1")
        assert client.test_and_set("/cas/a", "2", "1").action == "compareAndSwap"
        with pytest.raises(etcd.EtcdCompareFailed):
            client.test_and_set("/cas/a", "3", "1")
        index = client.read("/cas/a").modifiedIndex
        client.write("/cas/a", "4", prevIndex=index)
        with pytest.raises(etcd.EtcdCompareFailed):
            client.write("/cas/a", "5", prevIndex=index)

    def test_an_object_that_was_read_is_updated_once(self, client):
        client.write("/update/a", "1")
        first, second = client.read("/update/a"), client.read("/update/a")
        first.value = "2"
        assert client.update(first).value == "2"
        second.value = "3"
        with pytest.raises(etcd.EtcdCompareFailed):
            client.update(second)

    def test_directories_are_listed_in_depth_and_deleted(self, client):
        for name in ("b/2", "a/1", "a/3/4"):
            client.write(f"/tree/{name}", name)
        tree = client.read("/tree", recursive=True, sorted=True)
        assert [leaf.value for leaf in tree.leaves] == ["a/1", "a/3/4", "b/2"]
        assert [child.key for child in client.read("/tree", sorted=True).children] == [
            "/tree/a",
            "/tree/b",
        ]
        assert client.delete("/tree/b/2")._prev_node.value == "b/2"
        client.delete("/tree/b", dir=True)
        client.delete("/tree", recursive=True)
        assert "/tree" not in client

    def test_pop_returns_what_it_deletes(self, client):
        client.write("/pop/a", "1")
        assert client.pop("/pop/a").value == "1"
        assert "/pop/a" not in client

    def test_a_compare_and_delete_takes_its_condition(self, client):
        client.write("/cad/a", "1")
        with pytest.raises(etcd.EtcdCompareFailed):
            client.delete("/cad/a", prevValue="2")
        assert client.delete("/cad/a", prevValue="1").action == "compareAndDelete"

    def test_appended_keys_come_in_order(self, client):
        for value in ("first", "second"):
            client.write("/queue", value, append=True)
        listed = client.read("/queue", sorted=True).children
        assert [child.value for child in listed] == ["first", "second"]

    def test_a_ttl_is_told_refreshed_and_ends_the_key(self, client, other):
        written = client.write("/ttl/a", "1", ttl=1)
        assert written.ttl == 1
        watch = Background(lambda: other.watch("/ttl/a", index=written.modifiedIndex + 1))
        assert watch.result().action == "expire"
        assert "/ttl/a" not in client
        client.write("/ttl/b", "1", ttl=30)
        assert client.refresh("/ttl/b", ttl=60).value == "1"
        assert 59 <= client.read("/ttl/b").ttl <= 60
        directory = client.write("/ttl/dir", None, dir=True, ttl=30)
        assert directory.dir
        client.write("/ttl/dir", None, dir=True, prevExist=True, ttl=90)
        assert 89 <= client.read("/ttl/dir").ttl <= 90

    def test_a_watch_ends_with_the_next_change(self, server, client, other):
        watch = Background(lambda: other.watch("/watch", recursive=True))
        server.wait_for_watchers(1)
        client.write("/watch/a", "1")
        assert (watch.result().key, watch.result().value) == ("/watch/a", "1")

    def test_a_watch_with_a_timeout_gives_up_and_leaves_no_watcher(self, server, client):
        with pytest.raises(etcd.EtcdWatchTimedOut):
            client.watch("/never", timeout=0.05)
        client.http.clear()
        server.wait_for_watchers(0)

    def test_an_eternal_watch_sees_every_change_in_order(self, client, other):
        index = client.write("/eternal/start", "0").modifiedIndex + 1
        changes = other.eternal_watch("/eternal", index=index, recursive=True)
        seen = Background(lambda: [next(changes) for _ in range(20)])
        for number in range(20):
            client.write(f"/eternal/{number % 3}", str(number))
        assert [change.value for change in seen.result()] == [str(n) for n in range(20)]

    def test_the_lock_recipe_lets_one_in_after_the_other(self, server, client, other):
        first, second = etcd.Lock(client, "recipe"), etcd.Lock(other, "recipe")
        assert first.acquire(lock_ttl=60)
        assert not second.acquire(blocking=False)
        waiting = Background(lambda: second.acquire(blocking=True, lock_ttl=60))
        server.wait_for_watchers(1)
        assert second.is_acquired is False
        first.release()
        assert waiting.result() is True
        assert second.is_acquired
        assert not first.is_acquired
        second.release()

    def test_a_lock_whose_holder_has_died_is_passed_on(self, client, other):
        assert etcd.Lock(client, "died").acquire(lock_ttl=1)
        heir = etcd.Lock(other, "died")
        assert Background(lambda: heir.acquire(blocking=True, lock_ttl=60)).result() is True
        heir.release()

    def test_the_cluster_looks_like_one_member_that_leads(self, server, client):
        assert client.machines == [server.url]
        members = list(client.members.values())
        assert [member["clientURLs"] for member in members] == [[server.url]]
        assert client.leader["clientURLs"] == [server.url]
        assert client.stats["state"] == "StateLeader"
        assert client.leader_stats["followers"] == {}
        assert "setsSuccess" in client.store_stats
        assert client.version == "3.4.23"
        assert client.cluster_version == "3.4.0"

    def test_a_client_that_reconnects_finds_the_machines(self, server):
        client = etcd.Client(
            host=(("127.0.0.1", server.port),), allow_reconnect=True, protocol="http"
        )
        assert client.base_uri == server.url
        client.write("/reconnect", "1")
        assert client.read("/reconnect").value == "1"
        client.http.clear()

    def test_a_restart_is_not_taken_for_another_cluster(self, make_server):
        server = make_server().start()
        client = etcd.Client(host="127.0.0.1", port=server.port, allow_reconnect=True)
        written = client.write("/a", "1")
        server.listen = server.url
        server.kill()
        server.start()
        # A change of cluster id raises EtcdClusterIdChanged.
        assert client.read("/a").modifiedIndex == written.modifiedIndex
        client.http.clear()


class TestPythonEtcdUsers:
    def test_users_and_roles_are_administered_and_asked_for(self, fresh_server):
        client = etcd.Client(port=fresh_server.port, username="root", password="secret")
        root, al = EtcdUser(client, "root"), EtcdUser(client, "al")
        for user in (root, al):
            user.password = "secret"
            user.write()
        assert (root.roles, al.roles) == ({"root"}, set())
        al.password = "other"
        al.write()
        with pytest.raises(etcd.EtcdKeyNotFound):
            EtcdUser(client, "bo").read()
        role = EtcdRole(client, "rw")
        role.grant("/al/*", "RW")
        role.write()
        role.revoke("/al/*", "W")
        role.write()
        role.read()
        assert role.acls == {"/al/*": "R"}
        auth = Auth(client)
        assert not auth.active
        auth.active = True
        assert auth.active
        guest = EtcdRole(client, "guest")
        guest.read()
        guest.revoke("/*", "RW")
        guest.write()
        client.write("/al/x", "1")
        others = [etcd.Client(port=fresh_server.port, **who) for who in ({}, AL)]
        for other in others:
            with pytest.raises(etcd.EtcdInsufficientPermissions):
                other.read("/al/x")
        al.roles = {"rw"}
        al.write()
        assert others[1].read("/al/x").value == "1"
        with pytest.raises(etcd.EtcdInsufficientPermissions):
            others[1].write("/al/x", "2")
        with pytest.raises(etcd.EtcdInsufficientPermissions):
            EtcdUser(others[1], "al").read()
        for one in (al, role):
            one.delete()
        auth.active = False
        assert not auth.active
        for one in (client, *others):
            one.http.clear()


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

    def test_a_watch_tells_the_next_change(self, server, etcdctl):
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
