"""Verbs of kvdctl that etcdctl does not have: tree, history, txn, lock, top."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support.server import PATIENCE_S, ROOT
from tests.support.terminal import Terminal


@pytest.fixture
def stdin(own_environment):
    def give(text):
        own_environment.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    return give


@pytest.fixture(scope="module")
def app(server):
    client = server.client()
    client.put("/app/db/url", "postgres://db\n")
    client.put("/app/db/_secret", "x")
    client.put("/app/web", dir="true", ttl=5000)
    return client.put("/app/port", "80").index


def test_a_tree_shows_levels_values_and_hidden_keys(ctl, app):
    status, out, err = ctl("tree", "/app")
    assert (status, err) == (0, "")
    *lines, web, count = out.splitlines()
    assert lines == ["/app/", "|-- db/", "|   `-- url", "|-- port"]
    assert web.startswith("`-- web/  ttl ")
    assert count == f"2 keys, 2 directories, index {app}"
    assert "|   `-- url = postgres://db\\n\n" in ctl("tree", "/app", "--values")[1]
    assert "|   |-- _secret\n" in ctl("tree", "/app", "--hidden")[1]
    level = ctl("tree", "/app", "-L", 1)[1]
    assert "url" not in level
    assert f"1 key, 2 directories, index {app}" in level
    assert ctl("tree", "/app/port")[1] == f"/app/port\n1 key, 0 directories, index {app}\n"
    assert json.loads(ctl("-o", "json", "tree", "/app")[1])["node"]["key"] == "/app"


def test_a_tree_of_a_missing_key_is_refused_in_one_line(ctl):
    status, out, err = ctl("tree", "/none")
    assert (status, out) == (4, "")
    assert err.startswith("kvdctl: 100: Key not found (/none) [")


def test_colours_are_on_request(ctl, own_environment, app):
    assert "\x1b[" not in ctl("tree", "/app")[1]
    assert "\x1b[34mdb/\x1b[0m" in ctl("--color", "always", "tree", "/app")[1]
    assert "\x1b[" not in ctl("--color", "always", "-o", "json", "tree", "/app")[1]
    assert ctl("--color", "blue", "tree", "/app")[0] == 1


def test_the_history_of_a_key_is_newest_first(ctl, server):
    client = server.client()
    first = client.put("/h", "1").index
    client.put("/h", "2")
    client.delete("/h")
    lines = ctl("history", "/h")[1].splitlines()
    assert [line.split()[0] for line in lines] == [str(first + n) for n in (2, 1, 0)]
    assert lines[0].endswith("Z delete /h")
    assert lines[1].endswith("Z set /h = 2")
    assert len(ctl("history", "--limit", 2, "/h")[1].splitlines()) == 2
    received = [json.loads(line) for line in ctl("-o", "json", "history", "/h")[1].splitlines()]
    assert [one["action"] for one in received] == ["delete", "set", "set"]


def test_a_server_without_extras_is_recognized(make_server, kvdctl):
    server = make_server("--extras=false").start()
    words = "kvdctl: the server does not have kvd's extra '"
    for argv in (["history", "/h"], ["tree", "--hidden", "/"], ["get", "--at", "1", "/h"]):
        status, out, err = kvdctl("-C", server.url, *argv)
        assert (status, out) == (1, "")
        assert err.startswith(words)


def test_a_tree_that_is_too_deep_for_json_is_refused(ctl):
    assert ctl("set", "/deep" + "/d" * 600, "1")[0] == 0
    words = "kvdctl: the response is nested too deeply for Python\n"
    assert ctl("tree", "/deep") == (4, "", words)
    assert ctl("rm", "-r", "/deep")[0] == 0


def test_a_transaction_is_all_or_nothing(ctl, tmp_path, stdin):
    body = {"when": [{"key": "/x/a", "exists": False}], "ops": []}
    for key in ("/x/a", "/x/b"):
        body["ops"].append({"action": "set", "key": key, "value": "1"})
    (tmp_path / "txn").write_text(json.dumps(body))
    status, out, err = ctl("txn", tmp_path / "txn")
    assert (status, err) == (0, "")
    assert [line.split(" ", 1)[1] for line in out.splitlines()] == [
        "set /x/a = 1",
        "set /x/b = 1",
    ]
    stdin(json.dumps(body))
    status, out, err = ctl("txn", "-")
    assert (status, out) == (4, "")
    assert err.startswith("kvdctl: 105: Key already exists (/x/a) [")
    stdin("{")
    assert ctl("txn", "-")[0] == 1
    (tmp_path / "deep").write_text("[" * 100_000)
    assert ctl("txn", tmp_path / "deep")[0] == 1
    assert ctl("txn", "/nope") == (1, "", "kvdctl: /nope: No such file or directory\n")


def run(server, *argv, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "kvd.ctl.main", "-C", server.url, *argv],
        cwd=ROOT,
        env={**os.environ, "XDG_CONFIG_HOME": "/nonexistent"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_command_runs_while_its_lock_is_held(server):
    script = 'echo "$KVD_FENCE"; read line; exit 7'
    first = run(server, "lock", "/lock", "--", "sh", "-c", script, stdin=subprocess.PIPE)
    fence = int(first.stdout.readline())
    second = run(server, "lock", "/lock", "--ttl", "5", "--", "sh", "-c", 'echo "$KVD_FENCE"')
    server.wait_for_watchers(1)  # the second one waits for the first
    assert first.communicate("go\n", timeout=PATIENCE_S) == ("", "")
    assert first.returncode == 7
    out, err = second.communicate(timeout=PATIENCE_S)
    assert (second.returncode, err) == (0, "")
    assert int(out) > fence


def test_a_lost_lock_ends_its_command(server):
    script = "trap 'exit 0' TERM; echo held; while :; do sleep 0.05; done"
    held = run(server, "lock", "/lost", "--ttl", "3", "--", "sh", "-c", script)
    assert held.stdout.readline() == "held\n"
    server.client().delete("/lost", recursive="true")
    _, err = held.communicate(timeout=PATIENCE_S)
    assert held.returncode == 7
    assert err == "kvdctl: the lock on /lost was lost: the command was ended\n"


def test_signals_are_for_the_command_and_its_lock_is_given_up(server):
    script = "trap 'exit 5' TERM; echo held; while :; do sleep 0.05; done"
    held = run(server, "lock", "/signal", "--", "sh", "-c", script)
    assert held.stdout.readline() == "held\n"
    held.send_signal(signal.SIGTERM)
    assert held.communicate(timeout=PATIENCE_S) == ("", "")
    assert held.returncode == 5
    assert "nodes" not in server.client().get("/signal").json["node"]


def test_a_command_that_cannot_be_run_gives_up_its_lock(ctl, server):
    words = "kvdctl: /nope: No such file or directory\n"
    assert ctl("lock", "/nope", "--", "/nope") == (127, "", words)
    assert "nodes" not in server.client().get("/nope").json["node"]


def test_top_shows_what_the_server_does(ctl):
    status, out, err = ctl("top", "--count", 1, "--interval", 0.1)
    assert (status, err) == (0, "")
    rows = {line[:12].strip(): line[12:].strip() for line in out.splitlines() if line}
    assert list(rows)[:4] == ["reads", "writes", "sync p50", "sync p99"]
    assert rows["index"].isdecimal()
    assert rows["disk left"].endswith("iB")


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def run(server, *argv):
        kvdctl = [sys.executable, "-m", "kvd.ctl.main", "--endpoints", server.url]
        opened.append(Terminal([*kvdctl, *argv], server, tmp_path))
        return opened[-1]

    yield run
    for one in opened:
        one.close()


def test_top_outlives_its_server_and_leaves_the_terminal_as_it_was(fresh_server, terminal):
    fresh_server.listen = fresh_server.url  # the same port again
    top = terminal(fresh_server, "top", "--interval", "0.1")
    top.wait_for("disk left")
    fresh_server.kill()
    top.wait_for("no answer from .*\r\ntrying again; q ends it")
    fresh_server.start()
    top.shown = ""
    top.wait_for("disk left")
    top.send("xq")
    assert top.wait() == 0


def test_an_output_that_fails_is_one_line_and_one_that_is_closed_is_none(server):
    server.client().put("/full", "x")
    for output, words, status in (
        ("/dev/full", "kvdctl: No space left on device\n", 74),
        ("| true", "", 0),
    ):
        target = output if output.startswith("|") else f">{output}"
        program = f"{sys.executable} -m kvd.ctl.main -C {server.url} get /full"
        ended = subprocess.run(
            ["bash", "-c", f"{program} {target}; exit ${{PIPESTATUS[0]}}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (status, words)
