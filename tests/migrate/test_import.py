"""`kvdctl import` and `kvdctl export`: what arrives is what was there, or nothing arrives."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from kvd.client.operations import Operations
from kvd.client.sockets import Driver
from kvd.ctl.main import main
from kvd.migrate.documents.document import FORMATS
from kvd.migrate.errors import Refused
from kvd.migrate.etcd3 import Gateway
from kvd.migrate.live import Caller
from kvd.migrate.server import Target, differences, require_equal
from kvd.storage import disk
from kvd.storage.format.node import Node
from tests.support.ctl import kvdctl
from tests.support.etcd import state, write_at_random
from tests.support.server import PATIENCE_S, Client

OPTIONS = {
    "username": None, "password": None, "timeout": PATIENCE_S, "namespace": "", "connections": 1,
}  # fmt: skip
DIGEST = re.compile(r"digest ([0-9a-f]{64}), equal")


def done(capsys, *argv) -> str:
    """Run a verb that succeeds; what it prints."""
    status, out, err = kvdctl(capsys, *argv)
    assert (status, err) == (0, "")
    return str(out)


def refused(capsys, *argv) -> tuple[int, str]:
    status, _, err = kvdctl(capsys, *argv)
    assert err.startswith("kvdctl: ")
    assert len(err.splitlines()) == 1
    return status, err


# From a data directory of etcd.


def test_a_server_goes_on_where_the_etcd_ended(recorded, capsys, make_server, tmp_path):
    out = done(capsys, "import", recorded, tmp_path / "new")
    lines = out.splitlines()
    assert lines[0].startswith("etcd 3.4 data, member ")
    assert "1 request of the v3 API left out" in lines[1]
    assert any(", 2 users, 1 role, auth off" in line for line in lines)
    assert DIGEST.search(lines[-1])
    server = make_server(data_dir=tmp_path / "new").start()
    client = server.client()
    expected = json.loads((recorded / "told.json").read_text())
    assert state(client)["nodes"] == expected["nodes"]
    # It goes on behind the last index, its history with the etcd's.
    assert client.put("/next", "1").json["node"]["modifiedIndex"] == expected["index"] + 1
    event = client.get("/", wait="true", recursive="true", waitIndex=expected["index"] - 20).json
    assert expected["index"] - 20 <= event["node"]["modifiedIndex"] <= expected["index"]
    raft = int(client.request("GET", "/v2/keys/").headers["x-raft-index"])
    assert raft > 116
    # A user's password is still right.
    assert client.request("PUT", "/v2/auth/enable").status == 200
    for password, status in (("secretal", 200), ("wrong", 401)):
        pair = base64.b64encode(f"al:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {pair}"}
        assert client.request("GET", "/v2/keys/", headers=headers).status == status


def test_the_ids_are_kept_unless_new_ones_are_wanted(recorded, capsys, make_server, tmp_path):
    out = done(capsys, "import", recorded, tmp_path / "new")
    match = re.search(r"member (\w+) of cluster (\w+)", out)
    assert match
    done(capsys, "import", "--new-ids", recorded, tmp_path / "other")
    clusters = [
        make_server(data_dir=tmp_path / name).start().client().get("/").headers["x-etcd-cluster-id"]
        for name in ("new", "other")
    ]
    assert int(clusters[0], 16) == int(match[2], 16)
    assert clusters[1] != clusters[0]


def test_a_dry_run_writes_nothing(recorded, capsys, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    out = done(capsys, "import", "--dry-run", recorded, tmp_path / "new")
    assert "index " in out
    assert "written" not in out
    assert sorted(tmp_path.rglob("*")) == before


def test_damage_is_refused_with_file_and_offset_and_leaves_nothing(recorded, capsys, tmp_path):
    (path,) = (recorded / "member" / "wal").iterdir()
    content = bytearray(path.read_bytes())
    content[9000] ^= 1
    path.write_bytes(content)
    status, err = refused(capsys, "import", recorded, tmp_path / "new")
    assert status == 65
    assert re.search(rf"wal/{path.name}: offset \d+: ", err)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["single"]


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("none", 64, "no such data directory"),
        (".", 64, "no data directory of etcd"),
        ("kvd", 64, "is a data directory of kvd"),
        ("empty", 65, "empty: line 1: the document: expected a mapping"),
        ("bytes", 65, "bytes: is no UTF-8 at offset 2"),
    ],
)
def test_what_is_no_source_is_refused(capsys, tmp_path, source, status, reason):
    (tmp_path / "kvd").mkdir()
    (tmp_path / "kvd" / "FORMAT").touch()
    (tmp_path / "empty").touch()
    (tmp_path / "bytes").write_bytes(b"a:\xff")
    assert refused(capsys, "import", tmp_path / source, tmp_path / "new")[0] == status
    assert reason in refused(capsys, "import", tmp_path / source, tmp_path / "new")[1]


def test_a_target_that_is_not_empty_is_refused(recorded, capsys, tmp_path):
    target = tmp_path / "new"
    target.mkdir()
    (target / "file").touch()
    status, err = refused(capsys, "import", recorded, target)
    assert (status, "is not empty" in err) == (7, True)
    assert [entry.name for entry in target.iterdir()] == ["file"]


# Documents.

DOCUMENT = """\
kvd: 1
prefix: /app
keys:
  web/port: "8080"
  web/session: {value: "s", ttl: 600}
  db/: {}
  db2/_secret: {base64: AP8=}
"""


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "app.yaml"
    path.write_text(DOCUMENT)
    return path


def test_a_document_becomes_a_store(document, capsys, make_server, tmp_path):
    done(capsys, "import", document, tmp_path / "new")
    client = make_server(data_dir=tmp_path / "new").start().client()
    assert client.get("/app/web/port").json["node"]["value"] == "8080"
    assert 590 < client.get("/app/web/session").json["node"]["ttl"] <= 600
    assert client.get("/app/db").json["node"]["dir"] is True
    assert client.request("GET", "/v2/raw/app/db2/_secret").body == b"\x00\xff"


def test_a_document_goes_into_a_server_once(document, capsys, server, client):
    out = done(capsys, "import", document, server.url)
    assert DIGEST.search(out)
    status, err = refused(capsys, "import", document, server.url)
    assert (status, "/app/web/port" in err) == (7, True)
    client.put("/app/web/port", "9")
    done(capsys, "import", "--overwrite", document, server.url)
    assert client.get("/app/web/port").json["node"]["value"] == "8080"


def test_an_export_is_imported_and_exported_equal(document, capsys, make_server, tmp_path):
    one = make_server(data_dir=tmp_path / "one").start()
    other = make_server(data_dir=tmp_path / "other").start()
    done(capsys, "import", document, one.url)
    for form in FORMATS:
        first, second = (tmp_path / f"{n}.{form}" for n in (1, 2))
        done(capsys, "-C", one.url, "export", "/app", "-o", first)
        done(capsys, "import", first, other.url)
        done(capsys, "-C", other.url, "export", "/app", "-o", second)
        texts = [re.sub(r"index\W+\d+|T[\d:.]+Z", "", p.read_text()) for p in (first, second)]
        assert texts[0] == texts[1]
        assert "8080" in texts[0]
        other.client().delete("/app", recursive="true")


def test_an_export_that_fails_leaves_nothing(server, client, capsys, tmp_path):
    client.put("/text/a", "1")
    out = tmp_path / "out.yaml"
    out.mkdir()  # as good as a disk that is full: the last step fails
    status, _ = refused(capsys, "-C", server.url, "export", "/text", "-o", out)
    assert status == 74
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("out")] == ["out.yaml"]


def test_an_export_replaces_what_a_link_leads_to_and_writes_into_a_pipe(
    server, client, capsys, tmp_path
):
    client.put("/link/a", "1")
    (tmp_path / "there").mkdir()
    link, pipe = tmp_path / "out.yaml", tmp_path / "pipe"
    link.symlink_to("there/file.yaml")
    done(capsys, "-C", server.url, "export", "/link", "-o", link)
    assert link.is_symlink()
    text = (tmp_path / "there" / "file.yaml").read_text()
    assert "keys: {a: '1'}" in text
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(pipe.read_text)
        done(capsys, "-C", server.url, "export", "/link", "-o", pipe)
        assert reading.result(PATIENCE_S) == text
    assert pipe.is_fifo()
    assert [file.name for file in (tmp_path / "there").iterdir()] == ["file.yaml"]


def test_an_export_to_a_dash_goes_to_standard_output(
    server, client, tmp_path, monkeypatch, capfdbinary
):
    client.put("/dash/a", "1")
    monkeypatch.chdir(tmp_path)
    assert main(["-C", server.url, "export", "/dash", "-o", "-"]) == 0
    assert b"keys:" in capfdbinary.readouterr().out
    assert list(tmp_path.glob("-*")) == []


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"[" * 100_000], ids=["html", "list", "deep"])
def test_a_gateway_that_is_none_is_refused(body):
    with pytest.raises(Refused, match="the gateway answers"):
        Gateway(
            SimpleNamespace(
                call=lambda *_, **__: SimpleNamespace(body=body), authorize=lambda _: None
            )
        )


def test_a_document_that_is_none_is_refused_with_its_line(capsys, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("kvd: 1\nkeys:\n  port: 8080\n")
    status, err = refused(capsys, "import", path, tmp_path / "new")
    assert (status, err) == (65, f'kvdctl: {path}: line 3: port is a number; write "8080"\n')


# Live.


def test_a_server_is_read_into_a_directory_with_its_history(capsys, make_server, tmp_path):
    server = make_server(data_dir=tmp_path / "one").start()
    client = server.client()
    for n in range(5):
        client.put(f"/dir/k{n % 3}", f"v{n}")
    client.put("/_hidden/k", "h", ttl=500)
    out = done(capsys, "import", server.url, tmp_path / "new")
    assert "events from 2" in out
    other = make_server(data_dir=tmp_path / "new").start()
    there = other.client()
    shown = "/v2/keys/?recursive=true&hidden=true"
    bodies = [c.request("GET", shown).body for c in (client, there)]
    before, after = (re.sub(rb'"ttl":\d+', b"", body) for body in bodies)
    assert before == after
    event = there.get("/dir/k0", wait="true", waitIndex=3).json
    assert (event["node"]["value"], event["prevNode"]["value"]) == ("v3", "v0")


@pytest.mark.parametrize("by", ["Ctrl+C", "file"])
def test_following_ends_with_an_equal_server(make_server, tmp_path, by):
    one = make_server(data_dir=tmp_path / "one").start()
    other = make_server(data_dir=tmp_path / "other").start()
    client, there = one.client(), other.client()
    client.put("/app/a", "1")
    client.put("/app/t", "1", ttl=900)
    stop = tmp_path / "stop"
    verb = ("import", "--follow", "--stop-file", stop, one.url, other.url)
    process = subprocess.Popen(
        [sys.executable, "-m", "kvd.ctl.main", *verb],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: there.get("/app/t").status == 200)
        client.put("/app/b", "2")
        client.delete("/app/a")
        wait_for(lambda: there.get("/app/b").status == 200)
        wait_for(lambda: there.get("/app/a").status == 404)
        # Of this no watch is notified.
        refresh = {"ttl": 5000, "refresh": "true", "prevExist": "true"}
        assert client.request("PUT", "/v2/keys/app/t", refresh).status == 200
    finally:
        stop.touch() if by == "file" else process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    assert re.search(r"[1-9] refreshed TTL", out)
    assert there.get("/app/t").json["node"]["ttl"] > 4000
    assert there.get("/app/b").json["node"]["value"] == "2"


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_what_differs_is_put_right_whatever_it_is(make_server, stack, tmp_path):
    """TTLs given and taken, keys that became directories, and what is gone."""
    server = make_server(data_dir=tmp_path / "one").start()
    plain = make_server("--extras=false", data_dir=tmp_path / "other").start()
    ends = disk.wall_clock_ns() + 10**12
    first = {
        b"/d": Node(None, 1, 1, ends, 1), b"/d/k": Node(b"1", 1, 1), b"/f": Node(b"", 1, 1),
        b"/e": Node(None, 1, 1, 0, 1), b"/t": Node(b"t", 1, 1, ends),
        b"/r": Node(b"\xff", 1, 1),
    }  # fmt: skip
    second = {
        b"/d": Node(None, 1, 1, 0, 1), b"/d/k": Node(None, 1, 1, 0, 1), b"/f": Node(b"x", 1, 1),
        b"/e": Node(b"file", 1, 1), b"/t": Node(b"t", 1, 1), b"/n/_h": Node(b"", 1, 1, ends),
        b"/n": Node(None, 1, 1, 0, 1),
    }  # fmt: skip
    for one, hidden in ((server, ()), (plain, ("/n/_h",))):
        operations = Operations(one.url, **OPTIONS)
        stack.callback(operations.exchanges.close)
        target = Target(Caller(operations, Driver(None)), hidden)
        if one is plain:
            del first[b"/r"]  # without extras it shows another value
        for wanted in (first, second, first):
            changes = differences(wanted, target.read())
            target.write(changes, overwrite=True, done=lambda _: None)
            assert differences(wanted, target.read(), target.slowest_ns) == []
            assert require_equal(wanted, target.read(), target.slowest_ns, others=False)


def wait_for(is_so) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# A real etcd, where there is one.


def test_keys_go_to_etcd_v3_and_are_read_back_equal(capsys, make_server, start_etcd, tmp_path):
    etcd = start_etcd(tmp_path / "etcd")
    server = make_server(data_dir=tmp_path / "one").start()
    client = server.client()
    for n in range(250):
        ttl = {"ttl": 900 + n % 3} if n % 9 == 0 else {}
        client.put(f"/app/k{n}", "" if n == 7 else f"v{n}", **ttl)
    client.put("/app/empty", dir="true")
    args = ("-C", server.url, "export", "/app", "--etcd3", etcd.url, "--prefix", "/new")
    out = done(capsys, *args, "--dry-run")
    assert "250 keys for etcd v3, 28 with a lease" in out
    out = done(capsys, *args, "--dirs", "marker")
    assert "put 251 keys into etcd 3.4" in out
    assert DIGEST.search(out)
    status, err = refused(capsys, *args)
    assert status == 7
    assert "etcd has /new/app/k0 and 249 more already: nothing was put" in err
    assert "put 0 keys, 250 skipped" in done(capsys, *args, "--on-conflict", "skip")
    client.put("/app/k1", "changed")
    assert "put 250 keys" in done(capsys, *args, "--on-conflict", "overwrite")
    body = json.dumps({"key": base64.b64encode(b"/new/app/k1").decode()})
    received = etcd.client.request("POST", "/v3/kv/range", body).json["kvs"][0]
    assert base64.b64decode(received["value"]) == b"changed"


def test_an_etcd_v3_that_requires_users_gets_one(capsys, make_server, start_etcd, tmp_path):
    etcd = start_etcd(tmp_path / "etcd")
    server = make_server(data_dir=tmp_path / "one").start()
    server.client().put("/app/k", "v")
    args = ("-C", server.url, "export", "/app", "--etcd3", etcd.url)
    user = ("--etcd3-user", "root:secret")
    # Without users in etcd the name is not asked for.
    assert "put 1 keys" in done(capsys, *args, "--prefix", "/1", *user)
    for path, content in (
        ("user/add", {"name": "root", "password": "secret"}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("enable", {}),
    ):
        answer = etcd.client.request("POST", f"/v3/auth/{path}", json.dumps(content))
        assert answer.status == 200
    assert "put 1 keys" in done(capsys, *args, "--prefix", "/2", *user)
    _, err = refused(capsys, *args, "--prefix", "/3", "--etcd3-user", "root:wrong")
    assert "authentication failed" in err
    _, err = refused(capsys, *args, "--prefix", "/3")
    assert "user name is empty" in err


@pytest.mark.clients
def test_offline_and_live_give_one_digest(capsys, start_etcd, make_server, tmp_path):
    etcd = start_etcd(tmp_path / "etcd", "--snapshot-count=300")
    write_at_random(etcd.client, Random(8), 700)
    time.sleep(3)
    hidden = [key for key in state(etcd.client)["nodes"] if key.endswith("/_h")]
    flags = [flag for key in hidden if key.count("/_h") == 1 for flag in ("--hidden", key)]
    live = DIGEST.search(done(capsys, "import", *flags, etcd.url, tmp_path / "live"))
    expected = state(etcd.client)
    etcd.stop()
    offline = DIGEST.search(done(capsys, "import", etcd.directory, tmp_path / "offline"))
    assert live
    assert offline
    assert live[1] == offline[1]
    server = make_server(data_dir=tmp_path / "offline").start()
    assert state(server.client()) == expected
    shutil.rmtree(etcd.directory)


@pytest.mark.clients
@pytest.mark.timeout(900)
def test_100_000_keys_offline_live_and_to_v3(capsys, start_etcd, make_server, tmp_path):
    etcd = start_etcd(tmp_path / "etcd", "--snapshot-count=90000")

    def write(first: int) -> None:
        with contextlib.closing(Client(etcd.port)) as client:
            for number in range(first, 100_000, 4):
                directory = "_hidden" if number % 50 == 0 else number % 97
                ttl = {"ttl": 36_000 + number} if number % 10 == 0 else {}
                client.put(f"/app/{directory}/key-{number}", f"value {number}" * 3, **ttl)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hidden = ("--hidden", "/app/_hidden")
    live = DIGEST.search(done(capsys, "import", *hidden, etcd.url, tmp_path / "live"))
    to_v3 = ("-C", etcd.url, "export", "/app", *hidden, "--etcd3", etcd.url, "--prefix", "/v3")
    assert "put 100,000 keys" in done(capsys, *to_v3)
    server = make_server(data_dir=tmp_path / "server").start()
    assert DIGEST.search(done(capsys, "import", *hidden, etcd.url, server.url))
    etcd.stop()
    out = done(capsys, "import", etcd.directory, tmp_path / "offline")
    assert "100,099 nodes (100,000 keys, 99 directories, 10,000 with TTL, 2,001 hidden)" in out
    offline = DIGEST.search(out)
    assert live
    assert offline
    assert live[1] == offline[1]


@pytest.mark.clients
def test_an_etcd_is_followed_while_it_is_written_to(start_etcd, make_server, tmp_path):
    etcd = start_etcd(tmp_path / "etcd")
    server = make_server(data_dir=tmp_path / "server").start()
    client, there = etcd.client, server.client()
    write_at_random(client, Random(1), 200)
    client.put("/sign", "0")
    verb = [sys.executable, "-m", "kvd.ctl.main", "import", "--follow", etcd.url, server.url]
    with subprocess.Popen(verb, stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: there.get("/sign").status == 200)
        for number in range(1, 4):
            write_at_random(client, Random(number), 200)
            client.put("/sign", number)
            wait_for(lambda n=number: there.get("/sign").json["node"]["value"] == str(n))
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out
    assert DIGEST.search(out)
    trees = [c.request("GET", "/v2/keys/?recursive=true&sorted=true").json for c in (client, there)]
    assert values(trees[0]["node"]) == values(trees[1]["node"])


def values(node: dict[str, Any]) -> list[Any]:
    below = [values(child) for child in node.get("nodes", ())]
    return [node.get("key", "/"), node.get("value"), "ttl" in node, below]
