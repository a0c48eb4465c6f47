"""The manual's table for programs that use python-etcd: each row is run with both libraries."""

import ast
import contextlib
import re
import ssl
from collections.abc import Iterator
from typing import Any

import etcd
import pytest

import kvd
from kvd.client import HistoryLost, KvdError, Node, OutcomeUnknown, TransportError
from kvd.client import __all__ as names
from tests.client.test_exchanges import OK, Scripted, answers, hangs_up
from tests.support.certs import Authority
from tests.support.documents import MANUAL
from tests.support.server import Server, free_port

_, _, SECTION = (MANUAL / "python.md").read_text().partition("\n## From python-etcd\n")
ROWS = [
    tuple(re.findall(r"`([^`]*)`", line))
    for line in SECTION.partition("\n## ")[0].splitlines()
    if line.startswith("| `")
]
CLIENTS = [row for row in ROWS if row[0].startswith("etcd.Client")]
CALLS = [row for row in ROWS if "client" in row[0] and row not in CLIENTS]
ERRORS = {row[0]: list(row[1:]) for row in ROWS if row[0].startswith("Etcd")}


def test_each_row_is_run():
    assert len(CLIENTS) == 2
    assert len(CALLS) > 15
    assert len(ROWS) == len(CLIENTS) + len(CALLS) + len(ERRORS)
    assert ERRORS.keys() == CASES.keys()


def run(code: str, **names_: Any) -> object:
    """The value of the last expression, or `event`."""
    scope = {"etcd": etcd, "kvd": kvd, "ssl": ssl, **names_}
    *before, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        exec(code, scope)
        return scope.get("event")
    exec(compile(ast.Module(before, []), "<manual>", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "<manual>", "eval"), scope)


def plain(found: Any) -> object:
    """What both libraries say in their own ways."""
    if isinstance(found, etcd.EtcdResult):
        return found.key, found.value, found.dir
    if isinstance(found, kvd.client.Event):
        return found.node.key, found.node.value, found.node.dir
    return found


class Outcome:
    """What a call has led to: its value or its error, and the keys that are there then."""

    def __init__(self, url: str, code: str, client: Any) -> None:
        with kvd.Client(url) as other:
            for node in other.ls("/"):
                other.delete(node.key, recursive=True)
            other.set("/d/x", "1")
            index = other.set("/a", "1").index
            known = {"index": index, "node": other.get("/a"), "client": client}
            if isinstance(client, etcd.Client):
                known["result"] = client.read("/a")
            self.value: object = None
            self.error = ""
            try:
                self.value = plain(run(code, **known))
            except (etcd.EtcdException, KvdError) as error:
                self.error = type(error).__name__
            self.keys = [seen(node) for node in other.ls("/", recursive=True)]


def seen(node: Node) -> tuple[object, ...]:
    # The number of an in-order key is that of its creation.
    key = re.sub(r"\d{20}$", "N", node.key)
    return key, node.value, node.dir, node.ttl is None or node.ttl > 50


@pytest.mark.parametrize(("old", "new"), CALLS, ids=[old for old, _ in CALLS])
def test_a_call_does_the_same(server, old, new):
    before = Outcome(server.url, old, etcd.Client(port=server.port))
    with kvd.Client(server.url) as client:
        after = Outcome(server.url, new, client)
    assert before.keys == after.keys
    if before.error or after.error:
        assert after.error in ERRORS[before.error]
    elif "append" in old:
        assert before.value != after.value  # two keys, each with its number
    else:
        assert before.value == after.value


@pytest.mark.parametrize(("old", "new"), CLIENTS, ids=["http", "https"])
def test_a_client_is_made_likewise(make_server, tmp_path, old, new):
    authority = Authority(tmp_path)
    pair = authority.sign("server", "127.0.0.1")
    scheme = "https" if "https" in old else "http"
    files = ("--cert-file", str(pair.cert), "--key-file", str(pair.key))
    server = make_server(
        *("--advertise-client-urls", f"{scheme}://127.0.0.1:2379"),
        *(files if scheme == "https" else ()),
        listen=f"{scheme}://127.0.0.1:0",
    ).start()

    def here(code: str) -> Any:
        return run(code.replace("2379", str(server.port)).replace("ca.pem", str(authority.cert)))

    here(old).write("/a", "1")
    with here(new) as client:
        assert client.get("/a").value == "1"


# Each makes a client of either library fail: python-etcd's call, and that of kvd.Client.
CASES = {
    "EtcdKeyNotFound": ('client.read("/no")', 'client.get("/no")'),
    "EtcdCompareFailed": (
        'client.write("/a", "2", prevValue="3")', 'client.set("/a", "2", if_value="3")',
    ),
    "EtcdAlreadyExist": ('client.write("/a", "2", prevExist=False)', 'client.create("/a", "2")'),
    "EtcdNotFile": ('client.write("/d", "2")', 'client.set("/d", "2")'),
    "EtcdNotDir": ('client.write("/a/b", "2")', 'client.set("/a/b", "2")'),
    "EtcdRootReadOnly": ('client.delete("/", recursive=True)',) * 2,
    "EtcdDirNotEmpty": ('client.delete("/d", dir=True)',) * 2,
    "EtcdInsufficientPermissions": ('client.read("/a")', 'client.get("/a")'),
    "EtcdEventIndexCleared": (
        'client.watch("/a", index=1)',
        'with client.watch("/a", since=1) as watch: next(watch)',
    ),
    "EtcdWatchTimedOut": (
        'client.watch("/a", timeout=0.1)',
        'with client.watch("/a", timeout=0.1) as watch: next(watch)',
    ),
    "EtcdClusterIdChanged": ("", ""),
    "EtcdConnectionFailed": ("", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a short history, and users with passwords."""
    server = Server(tmp_path_factory.mktemp("guarded"), "--event-history-limit=5").start()
    with kvd.Client(server.url) as other:
        other.set("/d/x", "1")
        for number in range(10):
            other.set("/a", str(number))
    connection = server.client()
    root = '{"user":"root","password":"pw"}'
    assert connection.request("PUT", "/v2/auth/users/root", root).status == 201
    assert connection.request("PUT", "/v2/auth/enable").status == 200
    yield server
    server.stop()


@pytest.mark.parametrize("name", [name for name, (old, _) in CASES.items() if old])
def test_an_error_has_the_name_that_the_table_says(guarded, name):
    server = guarded
    user = {"username": "root", "password": "wrong"}
    if name != "EtcdInsufficientPermissions":
        user = {}  # guests may do anything, as in etcd
    old, new = CASES[name]
    with pytest.raises(getattr(etcd, name)):
        run(old, client=etcd.Client(port=server.port, **user))
    (expected,) = ERRORS[name]
    assert expected in names
    with kvd.Client(server.url, **user) as client, pytest.raises(getattr(kvd.client, expected)):
        run(new, client=client)


def test_another_store_is_noticed_by_both(make_server, tmp_path):
    listen = f"http://127.0.0.1:{free_port()}"
    first = make_server(listen=listen).start()
    old = etcd.Client(port=first.port, expected_cluster_id=None)
    old.write("/a", "1")
    with kvd.Client(listen) as client, client.watch("/a", since=1) as watch:
        next(watch)
        first.kill()
        make_server(data_dir=tmp_path / "other", listen=listen).start()
        with pytest.raises(etcd.EtcdClusterIdChanged):
            old.read("/a")
        with pytest.raises(kvd.client.ClusterChanged):
            next(watch)


def test_no_answer_is_a_connection_that_failed():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(etcd.EtcdConnectionFailed):
        etcd.Client(port=int(url.rpartition(":")[2])).write("/k", "1")
    with kvd.Client(url, timeout=0.1) as client, pytest.raises(TransportError):
        client.set("/k", "1")
    assert ERRORS["EtcdConnectionFailed"] == ["TransportError", "OutcomeUnknown"]


def test_a_write_without_an_answer_is_sent_again_by_one_of_them():
    with contextlib.closing(Scripted(hangs_up, answers(OK, goes_on=False))) as server:
        old = etcd.Client(port=int(server.url.rpartition(":")[2]))
        assert old.write("/k", "1").value == "1"
        assert len(server.requests) == 2
    with contextlib.closing(Scripted(hangs_up, answers(OK))) as server:
        with kvd.Client(server.url) as client, pytest.raises(OutcomeUnknown):
            client.set("/k", "1")
        assert len(server.requests) == 1


def test_a_quiet_key_is_watched_by_one_of_them(make_server, monkeypatch):
    monkeypatch.setattr("kvd.client.watches.PROGRESS_S", 0.1)
    server = make_server("--event-history-limit=5").start()
    with kvd.Client(server.url) as client:
        first = client.set("/quiet", "1").index
        old = etcd.Client(port=server.port).eternal_watch("/quiet", index=first)
        with client.watch("/quiet", since=first) as watch:
            assert next(old).value == next(watch).node.value == "1"
            for number in range(10):
                reached = client.set("/loud", str(number)).index
            with pytest.raises(etcd.EtcdEventIndexCleared):
                next(old)
            with pytest.raises(HistoryLost):
                run("with client.watch('/quiet', since=1) as late: next(late)", client=client)
            client.set("/quiet", "2")
            assert next(watch).node.value == "2"
            assert watch.index == reached + 1
