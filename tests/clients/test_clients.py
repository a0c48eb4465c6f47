"""Clients that were written for etcd: python-etcd 0.4.5 and etcdctl with the v2 API."""

import threading
from collections.abc import Callable, Iterator

import etcd
import pytest
from etcd.auth import Auth, EtcdRole, EtcdUser

from tests.support.server import PATIENCE_S, Server

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

    def test_a_ttl_is_shown_refreshed_and_ends_the_key(self, client, other):
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
        others = [etcd.Client(port=fresh_server.port, **name) for name in ({}, AL)]
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
