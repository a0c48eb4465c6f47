"""kvd/client/operations.py, through both clients and a real server."""

import pickle
from datetime import UTC, datetime

import pytest

from kvd.client import (
    BadRequest,
    Client,
    ClusterChanged,
    CompareFailed,
    DirectoryNotEmpty,
    HistoryLost,
    KeyExists,
    KeyNotFound,
    NotADirectory,
    NotAFile,
    NotSupported,
    Op,
    OutcomeUnknown,
    RootReadOnly,
    TransportError,
    Unauthorized,
    exists,
    missing,
    unchanged,
)
from tests.support.certs import Authority, client_context
from tests.support.server import Server


@pytest.fixture
def kvd(connect, server, request):
    """A client with a namespace of the test's own."""
    return connect(server.url, namespace=request.node.name.replace("[", "_").replace("]", ""))


def test_a_key_is_set_read_changed_and_removed(kvd):
    made = kvd.set("app/port", "8080")
    assert (made.action, made.node.key, made.node.value, made.prev_node) == (
        "set", "/app/port", "8080", None,
    )  # fmt: skip
    node = kvd.get("/app/port")
    assert (node.value, node.dir, node.modified_index) == ("8080", False, made.index)
    assert node.index >= made.index
    changed = kvd.set("/app/port", "ü \x01+&%", if_index=made.index)
    assert changed.action == "compareAndSwap"
    assert changed.prev_node.value == "8080"
    assert kvd.get("/app/port").value == "ü \x01+&%"
    assert kvd.get_or("/app/port", None) == "ü \x01+&%"
    assert kvd.exists("/app")
    gone = kvd.delete("/app/port", if_index=changed.index)
    assert gone.action == "compareAndDelete"
    assert gone.removes("app/port")
    assert not kvd.exists("/app/port")
    assert kvd.get_or("/app/port", 7) == 7
    assert kvd.delete("/app/port", missing_ok=True) is None


def test_refusals_are_errors_of_their_own(kvd):
    kvd.set("/d/a", "1")
    for refused, what in (
        (KeyNotFound, lambda: kvd.get("/none")),
        (KeyError, lambda: kvd.delete("/none")),
        (CompareFailed, lambda: kvd.set("/d/a", "2", if_value="3")),
        (CompareFailed, lambda: kvd.delete("/d/a", if_index=1)),
        (NotAFile, lambda: kvd.set("/d", "2")),
        (NotAFile, lambda: kvd.delete("/d")),
        (NotADirectory, lambda: kvd.set("/d/a/b", "2")),
        (NotADirectory, lambda: kvd.ls("/d/a")),
        (KeyExists, lambda: kvd.create("/d/a", "2")),
        (KeyExists, lambda: kvd.mkdir("/d/a", exist_ok=True)),
        (KeyNotFound, lambda: kvd.set("/none", "2", if_exists=True)),
        (DirectoryNotEmpty, lambda: kvd.delete("/d", dir=True)),
        (BadRequest, lambda: kvd.set("/d/a", "2", ttl=-1)),
    ):
        with pytest.raises(refused):
            what()
    with pytest.raises(KeyNotFound) as caught:
        kvd.get("/none")
    error = caught.value
    assert (error.code, error.message, error.status) == (100, "Key not found", 404)
    assert error.cause == "/none"
    assert str(error).startswith("100: Key not found (")


def test_keys_are_cleaned_as_the_server_does(kvd):
    kvd.set("//d/./a//b/../c/", "1")
    assert kvd.get("d/a/c").value == "1"
    assert kvd.get_bytes("/d/a//c") == b"1"


def test_the_root_cannot_be_removed(connect, server):
    with pytest.raises(RootReadOnly):
        connect(server.url).delete("/", recursive=True)


def test_keys_expire_and_are_refreshed(kvd):
    before = datetime.now(UTC)
    kvd.set("/lease", "me", ttl=100)
    node = kvd.get("/lease")
    assert 0 < node.ttl <= 100
    assert 0 < (node.expiration - before).total_seconds() < 101
    kvd.refresh("/lease", 1000, if_value="me")
    assert kvd.get("/lease").ttl > 100
    assert kvd.get("/lease").value == "me"
    with pytest.raises(CompareFailed):
        kvd.refresh("/lease", 10, if_value="you")
    with pytest.raises(KeyNotFound):
        kvd.refresh("/none", 10)


def test_directories_are_made_and_listed_at_one_index(kvd):
    assert kvd.mkdir("/d").node.dir
    assert kvd.mkdir("/d", exist_ok=True) is None
    kvd.set("/d/b/x", "1")
    last = kvd.set("/d/a", "2")
    kvd.set("/d/_hidden", "3")
    tree = kvd.ls("/d")
    assert {node.key for node in tree} == {"/d/a", "/d/b"}
    assert tree["/d/a"].value == "2"
    assert tree.index > last.index
    tree = kvd.ls("/d", recursive=True)
    assert {node.key: node.value for node in tree} == {"/d/a": "2", "/d/b": None, "/d/b/x": "1"}
    assert "/d/b/x" in tree
    assert len(tree) == 3
    assert kvd.delete("/d", recursive=True).removes("/d/b/x")


def test_in_order_keys_come_in_order(kvd):
    made = [kvd.append("/queue", str(n)).node.key for n in range(3)]
    assert made == sorted(made)
    assert [node.value for node in kvd.ls("/queue")] == ["0", "1", "2"]


def test_pages_are_the_listing(kvd):
    for n in range(7):
        kvd.set(f"/pages/k%{n} ü", str(n))
    whole = sorted(node.key for node in kvd.ls("/pages"))
    assert [node.key for node in kvd.iter_ls("/pages", page=3)] == whole
    with pytest.raises(NotADirectory):
        list(kvd.iter_ls("/pages/k%0 ü"))


def test_an_update_sees_what_others_have_written(connect, server):
    kvd = connect(server.url)
    key = f"/update/{type(kvd).__name__}"
    assert kvd.update(key, lambda value: str(int(value or 0) + 1)).node.value == "1"
    seen = []

    def change(value):
        seen.append(value)
        if len(seen) == 1:
            with Client(server.url) as other:
                other.set(key, "10")
        return str(int(value) + 1)

    assert kvd.update(key, change).node.value == "11"
    assert seen == ["1", "10"]
    assert kvd.update(key, lambda _: None) is None
    assert kvd.get(key).value == "11"


def test_transactions_happen_or_do_not(kvd):
    a = kvd.set("/a", "1").node
    events = kvd.txn(
        [Op.set("/b", "2", ttl=100), Op.create("/c", "3"), Op.delete("/a"), Op.append("/q", "x")],
        when=[exists("/a"), unchanged(a), missing("/lock")],
    )
    assert [(event.action, event.node.key) for event in events[:3]] == [
        ("set", "/b"), ("create", "/c"), ("delete", "/a"),
    ]  # fmt: skip
    assert [event.index for event in events] == list(range(events[0].index, events[0].index + 4))
    with pytest.raises(KeyExists):
        kvd.txn([Op.set("/b", "4")], when=[missing("/c")])
    assert kvd.get("/b").value == "2"


def test_the_history_of_a_key_and_bytes_that_are_no_text(kvd):
    kvd.set_bytes("/k", b"\xff\x00\n")
    assert kvd.get_bytes("/k") == b"\xff\x00\n"
    kvd.set("/k", "2")
    kvd.delete("/k")
    assert [event.action for event in kvd.history("/k")] == ["delete", "set", "set"]
    assert [event.action for event in kvd.history("/k", limit=1)] == ["delete"]


def test_bytes_are_set_under_conditions(kvd):
    made = kvd.set_bytes("/k", b"\xff&=", if_exists=False)
    with pytest.raises(KeyExists):
        kvd.set_bytes("/k", b"2", if_exists=False)
    with pytest.raises(CompareFailed):
        kvd.set_bytes("/k", b"2", if_value=b"\xfe&=")
    with pytest.raises(CompareFailed):
        kvd.set_bytes("/k", b"2", if_index=made.index - 1)
    with pytest.raises(BadRequest):
        kvd.set_bytes("/k", b"2", if_value=b"")
    assert kvd.set_bytes("/k", b"2", if_value=b"\xff&=").action == "compareAndSwap"
    assert kvd.get_bytes("/k") == b"2"


def test_a_server_without_extras_is_asked_for_none(connect, make_server):
    server = make_server("--extras=false").start()
    kvd = connect(server.url)
    kvd.set("/d/a", "1")
    for ask in (
        lambda: kvd.txn([Op.set("/a", "1")]),
        lambda: kvd.history("/d"),
        lambda: kvd.get_bytes("/d/a"),
    ):
        with pytest.raises(NotSupported):
            ask()
    assert [node.key for node in kvd.iter_ls("/d", page=1)] == ["/d/a"]


def test_users_are_named(connect, make_server):
    server = make_server().start()
    with Client(server.url) as admin:
        admin._run(
            admin._operations.call(
                "PUT",
                "/v2/auth/users/root",
                body=b'{"user":"root","password":"pw"}',
                content_type="application/json",
            )
        )
        admin._run(admin._operations.call("PUT", "/v2/auth/enable"))
    with pytest.raises(Unauthorized):
        connect(server.url, username="root", password="no").set("/a", "1")
    assert connect(server.url, username="root", password="pw").set("/a", "1").index


def test_the_same_over_a_unix_socket_and_tls(connect, make_server, tmp_path):
    authority = Authority(tmp_path)
    pair = authority.sign("server", "127.0.0.1", "localhost")
    path, tls_path = tmp_path / "kvd.sock", tmp_path / "tls.sock"
    server: Server = make_server(
        *("--advertise-client-urls", "https://127.0.0.1:2379"),
        *("--cert-file", str(pair.cert), "--key-file", str(pair.key)),
        listen=f"unix://{path},https://127.0.0.1:0,unixs://{tls_path}",
    )
    server.start()
    assert connect(f"unix://{path}").set("/a", "1").index
    tls_url = next(url for url in server.urls if url.startswith("https"))
    tls = client_context(authority.cert)
    for url in (tls_url, f"unixs://{tls_path}"):
        assert connect(url, tls=tls).get("/a").value == "1"
        # The system's authorities know nothing of this one.
        with pytest.raises(TransportError, match="CERTIFICATE_VERIFY_FAILED"):
            connect(url, timeout=3600).get("/a")


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:2379", "ftp://a", "http://", "unix://a/b", "http://h/p", "http://a b:1"),
        *("http://h:0", f"http://{'a' * 64}:1"),
    ],
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match=r"expected (http://HOST:PORT|the name of a host)"):
        Client(url)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_what_is_no_timeout_is_refused(timeout):
    with pytest.raises(ValueError, match="more than 0 seconds"):
        Client("http://127.0.0.1:1", timeout=timeout)


@pytest.mark.parametrize("given", [{"username": "a:b"}, {"password": "secret"}])
def test_what_is_no_user_is_refused(given):
    with pytest.raises(ValueError, match="user name"):
        Client("http://127.0.0.1:1", **given)


def test_no_time_to_wait_is_one_that_has_no_order(server):
    nan = float("nan")
    with Client(server.url) as client:
        for wait in (
            lambda: next(client.watch("/k", timeout=nan)),
            lambda: client.lock("/nan/lock").acquire(timeout=nan),
            lambda: client.queue("/nan/queue").take(timeout=nan).__enter__(),
        ):
            with pytest.raises(ValueError, match="NaN"):
                wait()
        assert not client.exists("/nan")


def test_what_is_no_text_is_not_written_as_one(kvd):
    """To print it would make `b'1'` of bytes; and of None, the empty value."""
    for value in (None, b"1", 1, 1.5, ["1"]):
        with pytest.raises(TypeError, match="a value is a str"):
            kvd.set("/k", value)
        with pytest.raises(TypeError, match="a value is a str"):
            kvd.update("/other", lambda _, value=value: value or b"")
    for key in (None, b"/k", 1):
        with pytest.raises(TypeError, match="a key is a str"):
            kvd.set(key, "1")
    with pytest.raises(TypeError, match="prevValue"):
        kvd.set("/k", "1", if_value=b"1")
    with pytest.raises(TypeError, match="ttl"):
        kvd.set("/k", "1", ttl=1.5)
    assert not kvd.exists("/k")


def test_errors_go_to_other_processes():
    for error in (
        ClusterChanged("a", "b"),
        HistoryLost(401, "outdated", "[8/3]", 10, 400),
        OutcomeUnknown("PUT /v2/keys/k"),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), vars(again)) == (str(error), vars(error))
