"""kvdctl tail: every event once, in order, over crashes of the server and kills of itself."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kvd
from tests.support.server import PATIENCE_S, ROOT, free_port

CRASHES = 8
KILLS = 2


class Tail:
    """A tail whose output is a file, started again after it was killed."""

    def __init__(self, directory, *argv):
        self.output = directory / "lines"
        self.errors = directory / "errors"
        self._argv = argv
        self._environment = {**os.environ, "XDG_CONFIG_HOME": str(directory)}
        self._process = None

    def start(self):
        with self.output.open("ab") as output, self.errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kvd.ctl.main", *self._argv],
                cwd=ROOT,
                env=self._environment,
                stdout=output,
                stderr=errors,
            )
        return self

    def is_running(self):
        return self._process.poll() is None

    def kill(self):
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def stop(self):
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(PATIENCE_S)

    def indexes(self):
        return [int(line.split()[0]) for line in self.output.read_text().splitlines()]

    def wait_for(self, index):
        deadline = time.monotonic() + PATIENCE_S
        while f"\n{index} " not in f"\n{self.output.read_text()}":
            assert self._process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, f"no line of {index}"
            time.sleep(0.01)


@pytest.fixture
def tail(tmp_path):
    made = []

    def make(*argv):
        made.append(Tail(tmp_path, *argv))
        return made[-1].start()

    yield make
    for one in made:
        one.stop()


def test_every_index_is_there_once_over_crashes_of_the_server_and_kills_of_tail(tmp_path, tail):
    dice = random.Random(5)
    listen = f"http://127.0.0.1:{free_port()}"
    server = kvd.Server(tmp_path / "data", listen=listen).start()
    tailed = None
    try:
        for number in range(CRASHES):
            with kvd.Client(listen) as client:
                last = [client.set("/t/k", str(n)).index for n in range(dice.randint(1, 9))][-1]
            if tailed is None:
                state = tmp_path / "state"
                tailed = tail("-C", listen, "tail", "/t", "--since", "1", "--state", str(state))
            if number % (CRASHES // KILLS) == 1:
                tailed.kill()
                tailed.start()
            server.crash()
            server.start()
        tailed.wait_for(last)
    finally:
        server.stop()
    with_tail = tailed.indexes()
    assert with_tail == list(range(2, last + 1))
    assert json.loads(state.read_text())["index"] == last


def test_the_loss_of_the_server_and_its_return_are_printed_once_each(tmp_path, tail):
    listen = f"http://127.0.0.1:{free_port()}"
    server = kvd.Server(tmp_path / "data", listen=listen).start()
    try:
        with kvd.Client(listen) as client:
            index = client.set("/a", "1").index
        tailed = tail("-C", listen, "tail", "/", "--since", "1")
        tailed.wait_for(index)
        server.crash()
        server.start()
        with kvd.Client(listen) as client:
            tailed.wait_for(client.set("/a", "2").index)
        assert tailed.stop() == 0
    finally:
        server.stop()
    assert tailed.errors.read_text() == f"lost the server at {index}\nback at {index}\n"


def test_what_was_printed_and_not_kept_is_not_printed_again(fresh_server, tmp_path, tail):
    client = fresh_server.client()
    at = ("-C", fresh_server.url, "tail", "/t", "--since", "1", "--state", str(tmp_path / "state"))
    first = client.put("/t/1", "1").index
    tailed = tail(*at)
    tailed.wait_for(first)
    tailed.stop()
    second = client.put("/t/2", "two\nlines").index
    third = client.put("/t/3", "3").index
    # As if it had been killed between a line and the state, and then in the middle of a line.
    with tailed.output.open("a") as output:
        output.write(f"{second} 12:00:00.000 set /t/2 = two\\nlines\n{third} half")
    last = client.put("/t/4", "4").index
    tailed.start()
    tailed.wait_for(last)
    assert tailed.indexes() == [first, second, third, last]
    assert "half" not in tailed.output.read_text()


def wait_for_state(state, tailed, index):
    deadline = time.monotonic() + PATIENCE_S
    while not state.exists() or json.loads(state.read_text())["index"] < index:
        assert tailed.is_running(), tailed.errors.read_text()
        assert time.monotonic() < deadline, f"no state of {index}"
        time.sleep(0.01)


def test_the_state_moves_on_while_only_other_keys_change(make_server, tmp_path, tail):
    server = make_server("--event-history-limit", "3").start()
    client = server.client()
    state = tmp_path / "state"
    tailed = tail("-C", server.url, "tail", "/t", "--state", str(state))
    wait_for_state(state, tailed, 1)  # it is there before the first event
    for number in range(10):
        other = client.put("/other", number).index
    wait_for_state(state, tailed, other)
    tailed.kill()
    last = client.put("/t/1", "1").index
    tailed.start()  # the history no longer has what was next when it was started first
    tailed.wait_for(last)
    assert tailed.indexes() == [last]


@pytest.mark.parametrize("form", ["simple", "json"])
def test_a_resync_that_was_killed_begins_again(make_server, tmp_path, tail, form):
    server = make_server("--event-history-limit", "3").start()
    client = server.client()
    for number in range(10):
        last = client.put(f"/t/{number % 2}", number).index
    output = tmp_path / "lines"
    line = f"{last} 12:00:00.000 state /t/0 = 8\n"
    if form == "json":
        line = json.dumps({"index": last, "action": "state", "key": "/t/0", "value": "8"}) + "\n"
    output.write_text(line)  # and it was killed before /t/1
    kept = {"inode": output.stat().st_ino, "size": 0}
    state = tmp_path / "state"
    cluster_id = client.get("/t").headers["x-etcd-cluster-id"]
    state.write_text(json.dumps({"index": 2, "cluster": cluster_id, "output": kept}))
    at = ("-C", server.url, "-o", form, "tail", "/t", "--state", str(state), "--resync")
    tailed = tail(*at)
    wait_for_state(state, tailed, last)
    assert "/t/1" in output.read_text()


def test_lost_events_end_it_or_are_followed_by_the_whole_state(make_server, tmp_path, tail, kvdctl):
    server = make_server("--event-history-limit", "3").start()
    client = server.client()
    for number in range(10):
        last = client.put(f"/t/{number % 2}", number).index
    at = ("-C", server.url, "tail", "/t", "--since", "2")
    first = last - 2
    words = f"events 2..{first - 1} are gone, the history begins at {first}"
    assert kvdctl(*at) == (8, "", f"kvdctl: {words}\n")
    tailed = tail(*at, "--resync")
    tailed.wait_for(last)
    after = client.put("/t/0", "new").index
    tailed.wait_for(after)
    lines = tailed.output.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "state /t/0 = 8",
        "state /t/1 = 9",
        "set /t/0 = new",
    ]


def test_json_lines_have_all_of_an_event(fresh_server, tmp_path, tail):
    client = fresh_server.client()
    client.put("/t/1", "a")
    client.put("/t/1", 'b"\n', ttl=3000)
    client.delete("/t/1")
    last = client.put("/t/d", dir="true").index
    tailed = tail("-C", fresh_server.url, "tail", "/t", "--since", "3", "-o", "json")
    deadline = time.monotonic() + PATIENCE_S
    while tailed.output.read_text().count("\n") < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    received = [json.loads(line) for line in tailed.output.read_text().splitlines()]
    ttl = received[0].pop("ttl")
    assert 2990 < ttl <= 3000
    assert received == [
        {"index": 3, "action": "set", "key": "/t/1", "value": 'b"\n', "prevValue": "a"},
        {"index": 4, "action": "delete", "key": "/t/1", "prevValue": 'b"\n'},
        {"index": last, "action": "set", "key": "/t/d", "dir": True},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty, cut off or"),
        ("{", "remove it and name the first index that is wanted with --since"),
        ("[]", "it is no file of tail --state: name another one"),
        ('{"index": 7, "clus', "it is empty, cut off or"),
        ('{"index": "x"}\n', "it is no file of tail --state: name another one"),
    ],
)
def test_a_state_that_is_none_is_refused_with_the_way_out(ctl, tmp_path, text, words):
    (tmp_path / "state").write_text(text)
    status, out, err = ctl("tail", "/t", "--state", tmp_path / "state")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert words in err


def test_a_state_that_cannot_be_written_is_reported_at_once(ctl, tmp_path):
    state = tmp_path / "none" / "state"
    words = f"kvdctl: {state}: No such file or directory\n"
    assert ctl("tail", "/t", "--state", state) == (1, "", words)


def test_a_power_cut_leaves_no_half_state_and_none_ahead_of_the_output(
    ctl, own_environment, server, tmp_path
):
    index = server.client().put("/synced", "1").index
    steps = []

    def note(descriptor):
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        if len(steps) == 6:  # those of the first index, and of the event
            raise KeyboardInterrupt

    for name in ("fsync", "fdatasync"):
        own_environment.setattr(os, name, note)
    state = tmp_path / "state"
    with (tmp_path / "lines").open("w+") as output:
        own_environment.setattr(sys, "stdout", output)
        assert ctl("tail", "/synced", "--since", index, "--state", state)[0] == 0
        output.seek(0)
        assert output.read().startswith(f"{index} ")
    assert steps[:6] == ["lines", "state.tmp", tmp_path.name] * 2
    assert json.loads(state.read_text())["index"] == index
