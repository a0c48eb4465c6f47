"""Verbs of etcdctl that wait, run commands and outlive a server: `watch`, `exec-watch`."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support.server import PATIENCE_S, ROOT


@pytest.fixture
def start(fresh_server, tmp_path):
    """Starts kvdctl on a fresh server."""
    started = []

    def run(*argv, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "kvd.ctl.main", "-C", fresh_server.url, *argv],
            cwd=ROOT,
            env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_watch_prints_each_event_until_it_is_interrupted(fresh_server, start):
    client = fresh_server.client()
    watch = start("watch", "-f", "-r", "/w")
    fresh_server.wait_for_watchers(1)
    client.put("/w/x", "2")
    client.put("/w/d", dir="true")
    client.delete("/w/x")
    lines = [watch.stdout.readline() for _ in range(4)]
    assert lines == ["[set] /w/x\n", "2\n", "[delete] /w/x\n", "PrevNode.Value: 2\n"]
    watch.send_signal(signal.SIGINT)
    assert watch.communicate(timeout=PATIENCE_S) == ("", "")
    assert watch.returncode == 0


def test_a_watch_waits_for_a_server_that_is_started_again(make_server, fresh_server, start):
    fresh_server.listen = fresh_server.url  # the same port again
    watch = start("watch", "-f", "/k")
    fresh_server.wait_for_watchers(1)
    fresh_server.kill()
    fresh_server.start()
    fresh_server.client().put("/k", "later")
    assert watch.stdout.readline() == "later\n"


def test_exec_watch_runs_its_command_for_each_event(fresh_server, start):
    client = fresh_server.client()
    index = client.put("/w/a", "0").index
    script = 'echo "$ETCD_WATCH_ACTION $ETCD_WATCH_KEY $ETCD_WATCH_VALUE $0"'
    for argv in (["/w", "--", "sh", "-c", script, "A"], ["--", "sh", "-c", script, "A", "/w"]):
        watch = start("exec-watch", "-r", "--after-index", str(index), *argv)
        for number in (1, 2):
            client.put("/w/a", number)
            found = f"set /w/a {number} A\n"
            assert watch.stdout.readline() == found
        index = client.get("/w/a").index
        watch.send_signal(signal.SIGINT)
        assert watch.wait(PATIENCE_S) == 0


def test_a_command_that_cannot_be_started_ends_exec_watch(fresh_server, start):
    index = fresh_server.client().put("/w", "0").index - 1
    after = ("--after-index", str(index))
    for command, words in (
        ("/nonexistent", "fork/exec /nonexistent: no such file or directory\n"),
        ("nonexistent", 'exec: "nonexistent": executable file not found in $PATH\n'),
    ):
        watch = start("exec-watch", *after, "/w", "--", command)
        assert watch.communicate(timeout=PATIENCE_S) == ("", words)
        assert watch.returncode == 1


def test_values_that_are_no_text_go_both_ways(ctl, own_environment, fresh_server, start):
    at = start("set", "--raw", "/bytes", stdin=subprocess.PIPE)
    at.stdin.buffer.write(b"\0\xff\n")
    assert at.communicate(timeout=PATIENCE_S) == ("", "")
    raw = start("get", "--raw", "/bytes")
    assert raw.stdout.buffer.read() == b"\0\xff\n"
    by_argument = start("set", "/arg", b"\xfe".decode("utf-8", "surrogateescape"))
    by_argument.wait(PATIENCE_S)
    assert start("get", "--raw", "/arg").stdout.buffer.read() == b"\xfe"


def test_a_key_as_it_was(ctl, server):
    client = server.client()
    index = client.put("/old", "1").index
    client.put("/old", "2")
    assert ctl("get", "--at", index, "/old") == (0, "1\n", "")
    assert ctl("get", "--at", 1, "/old")[0] == 4


def test_a_long_listing(ctl, server):
    client = server.client()
    index = client.put("/long/a", "four", ttl=3000).index
    client.put("/long/d/e", "")
    _, out, _ = ctl("ls", "-l", "--sort", "/long")
    first, second = out.splitlines()
    assert first.split()[:2] == ["4", str(index)]
    assert first.endswith("s  /long/a")
    assert second.split() == ["-", str(index + 1), "-", "/long/d/"]
