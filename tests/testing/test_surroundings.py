"""kvd/testing in the programs of others: forks, interrupts, folders, environments, arguments."""

import contextlib
import itertools
import os
import signal
import tempfile
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from kvd.client import Client
from kvd.testing.fixture import KvdFixture
from kvd.testing.hosts import Child, Guest


@pytest.fixture(scope="module", params=[Guest, Child])
def shared(request):
    with contextlib.closing(KvdFixture(request.param)) as server:
        yield server


@pytest.fixture
def server(shared):
    shared.reset()
    return shared


@pytest.fixture
def guest():
    with contextlib.closing(KvdFixture()) as server:
        yield server


@pytest.fixture(params=[Guest, Child])
def start(request):
    """Starts servers of one kind."""
    with contextlib.ExitStack() as servers:
        yield lambda **flags: servers.enter_context(
            contextlib.closing(KvdFixture(request.param, **flags))
        )


def in_a_fork(act) -> str:
    """What a function returns in a forked process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, str(act()).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        return pipe.read()


def test_a_fork_leaves_the_server_of_its_parent_alone(server):
    server.client.set("/a", "1")

    def attack():
        refused = 0
        for act in (server.dump, server.stop, server.crash, server.restart, server.reset):
            try:
                act()
            except RuntimeError as error:
                refused += "belongs to the process that has forked" in str(error)
        shown = server.failed, refused, server.client.get("/a").value
        server.close()
        return shown

    assert in_a_fork(attack) == "(None, 5, '1')"
    server.client.set("/a", "2")
    server.restart(clean=False)
    assert server.dump() == {"/a": "2"}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
def test_a_port_that_the_system_chose_stays(host):
    urls = f"http://{host}:0,http://{host}:0"
    with contextlib.closing(KvdFixture(listen_client_urls=urls)) as server:
        first, second = server._host.call("started")
        assert first == server.url != second
        for end in (server.stop, server.crash):
            end()
            server.start()
            for url in (first, second):
                with Client(url) as client:
                    assert client.set("/a", "1").node.value == "1"


def test_a_socket_in_the_file_system_comes_back():
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.closing(KvdFixture(listen_client_urls=f"unix://{directory}/s")) as server,
    ):
        server.restart(clean=False)
        assert server.client.set("/a", "1").index == server.index
        assert server.port == 0


@pytest.mark.parametrize(
    "flags",
    [
        {"data_dir": "/none"},
        {"memory": True},
        {"listen": "http://127.0.0.1:0"},
        {"faults": None},
        {"clock": None},
    ],
    ids=str,
)
def test_what_is_not_for_a_test_to_choose_is_refused(start, flags):
    (name,) = flags
    with pytest.raises(TypeError, match=rf"^{name}: a server of a test|kvd has no flag '{name}'"):
        start(**flags)


@pytest.mark.parametrize("url", ["http://127.0.0.1:x", "http://[::1", "ftp://127.0.0.1:0", "http:"])
def test_an_address_that_is_none_is_reported_by_the_server(url):
    with pytest.raises(ValueError, match="--listen-client-urls"):
        KvdFixture(listen_client_urls=url)


def test_wrong_arguments_harm_no_server(server):
    year_ns = 366 * 86_400
    for wrong, kind in (
        (lambda: server.fill_disk("1"), TypeError),
        (lambda: server.fill_disk(0.5), TypeError),
        (lambda: server.fail_next_fsync("EIO"), TypeError),
        (lambda: server.advance(200 * year_ns), ValueError),
        (lambda: server.advance(float("inf")), OverflowError),
        (lambda: server.freeze_time("2030-01-01"), TypeError),
        (lambda: server.freeze_time(date(2030, 1, 1)), TypeError),
        (lambda: server.freeze_time(datetime(1969, 12, 31, tzinfo=UTC)), ValueError),
        (lambda: server.freeze_time(datetime(2200, 1, 1, tzinfo=UTC)), ValueError),
        (lambda: server.wait_for_index("7"), (TypeError, RuntimeError)),
    ):
        with pytest.raises(kind):
            wrong()
    server.client.set("/a", "1", ttl=600)
    server.restart()
    assert 0 < server.client.get("/a").ttl <= 600


def test_the_first_and_the_last_date_can_be_stored(guest):
    for at in (datetime(1970, 1, 1, tzinfo=UTC), datetime(2199, 12, 31, tzinfo=UTC)):
        guest.freeze_time(at)
        guest.client.set("/a", "1", ttl=86_400 - 1)
        guest.restart(clean=False)
        assert guest.client.get("/a").expiration.date() == at.date()
        guest.advance(86_400 - 1)
        assert guest.dump() == {}


def interrupted_after(seconds: float, act) -> None:
    """Interrupt a call, as Ctrl-C or the timeout of a test does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with pytest.raises(KeyboardInterrupt):
            act()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_verb_that_is_interrupted_answers_no_other(server):
    server.client.set("/a", "1")
    index = server.index
    # That many need not come; the answer to the first is there before those to the next.
    interrupted_after(0.01, lambda: server.wait_for_index(index + 1, timeout=30))
    server.client.set("/a", "2")
    assert server.dump() == {"/a": "2"}
    assert server.index == index + 1


def test_an_answer_of_which_an_interrupt_has_cost_a_part_is_skipped():
    with contextlib.closing(KvdFixture(Child)) as server:
        for part in (b'": 7}]\n', b'[99, {"res', b"\n[1"):
            server._host._received = part
            assert server.index == 1
        assert os.getpgid(server._host._process.pid) != os.getpgrp()  # as for Ctrl-C in a terminal


def test_files_of_the_project_are_not_taken_for_modules(tmp_path, monkeypatch):
    for name in ("json", "queue", "logging", "kvd", "storage"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is another program')\n")
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(KvdFixture(Child)) as server:
        assert server.client.set("/a", "1").index == 2


def test_it_needs_no_folder_but_its_own(start, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    assert start().client.set("/a", "1").index == 2


def test_settings_of_the_environment_are_not_those_of_a_test(start, monkeypatch):
    for name in ("KVD_EVENT_HISTORY_LIMIT", "ETCD_HEARTBEAT_INTERVAL", "LISTEN_FDS"):
        monkeypatch.setenv(name, "wrong")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    server = start()
    assert server.client.set("/a", "1").index == 2
    server.stop()
    assert not any("Warning" in line for line in server.log)


def test_many_servers_one_after_the_other_leave_no_file_open():
    def open_files() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    counts = []
    for _ in range(4):
        with contextlib.closing(KvdFixture()) as server:
            server.client.set("/a", "1")
            server.crash()
            server.start()
        counts.append(open_files())
    assert all(one >= other for one, other in itertools.pairwise(counts[1:])), counts
