"""kvd/testing: what a test can do to a server, in a thread and in a process of its own."""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

import kvd
from kvd.client import KeyNotFound, OutcomeUnknown, ServerRefused, TransportError
from kvd.testing import hosts
from kvd.testing.fixture import KvdFixture
from kvd.testing.hosts import Child, Guest, ProcessEnded
from tests.support.server import PATIENCE_S
from tests.support.waiting import wait_until

DAY_S = 86_400
SERVERS = Path("/dev/shm")


@pytest.fixture(scope="module", params=[Guest, Child])
def shared(request):
    server = KvdFixture(request.param)
    yield server
    server.close()


@pytest.fixture
def server(shared):
    shared.reset()
    return shared


@pytest.fixture
def guest():
    server = KvdFixture()
    yield server
    server.close()


def test_after_a_crash_all_that_was_acknowledged_is_at_the_same_address(server):
    with server.client.watch("/", since=server.index + 1) as watch:
        for number in range(20):
            server.client.set(f"/k{number:02}", str(number))
        port, keys = server.port, server.dump()
        assert keys == {f"/k{number:02}": str(number) for number in range(20)}
        server.crash()
        with kvd.Client(server.url, timeout=0.1) as client, pytest.raises(TransportError):
            client.get("/k00")
        with pytest.raises(RuntimeError, match="does not run"):
            server.dump()
        server.start()
        assert (server.port, server.dump()) == (port, keys)
        server.restart()
        server.restart(clean=False)
        with pytest.raises(RuntimeError, match="runs already"):
            server.start()
        server.client.set("/last", "")
        received = []
        for event in watch:
            received.append(event.node.key)
            if event.node.key == "/last":
                break
    assert received == [*keys, "/last"]
    assert server.failed is None


def test_a_sync_that_fails_ends_the_server_and_not_the_test(server):
    server.client.set("/a", "1")
    server.fail_next_fsync(errno.EIO)
    with pytest.raises(OutcomeUnknown):
        server.client.set("/a", "2")
    assert isinstance(server.failed, OSError | ProcessEnded)
    assert "the disk failed, stopping at once: [Errno 5]" in "\n".join(server.log)
    with pytest.raises((OSError, ProcessEnded)):
        server.dump()
    server.start()
    assert server.failed is None
    assert server.client.get("/a").value in ("1", "2")
    server.client.set("/a", "3")


def test_a_server_that_has_just_failed_is_known_to_have_failed(server):
    for number in range(3):
        server.fail_next_fsync()
        with pytest.raises(OutcomeUnknown):
            server.client.set("/a", str(number))
        server.start()
    server.fail_next_fsync()
    with pytest.raises(RuntimeError, match="runs already"):
        server.start()
    with pytest.raises(OutcomeUnknown):
        server.client.set("/a", "")
    assert server.failed is not None
    server.restart()
    assert server.failed is None


def test_a_process_that_answers_no_more_has_failed(monkeypatch):
    before = left_behind()["processes"].split()
    server = KvdFixture(Child)
    (process,) = [one for one in left_behind()["processes"].split() if one not in before]
    os.kill(int(process), signal.SIGSTOP)
    monkeypatch.setattr(hosts, "_STOP_S", 0.1)
    with contextlib.closing(server):
        assert server.failed.status == -signal.SIGKILL
        monkeypatch.undo()
        server.start()
        server.client.set("/a", "1")


def test_two_threads_use_it_at_once(server):
    def look(_: int) -> int:
        return server.index if server.failed is None else -1

    with ThreadPoolExecutor(4) as threads:
        assert {*threads.map(look, range(40))} == {server.index}


def test_a_full_disk_refuses_writes_until_there_is_room(server):
    server.client.set("/a", "1")
    server.fill_disk()
    with pytest.raises(ServerRefused):
        server.client.set("/b", "1")
    assert server.client.get("/a").value == "1"
    server.client.delete("/a")
    server.restart()  # the disk is as full as before
    with pytest.raises(ServerRefused):
        server.client.set("/b", "1")
    server.fill_disk(None)
    server.client.set("/b", "1")
    server.fill_disk(1 << 40)
    server.client.set("/b", "2")


def test_a_day_passes_at_once_and_watchers_are_notified(server):
    for hour in range(1, 25):
        server.client.set(f"/hour/{hour:02}", "", ttl=hour * 3600)
    server.client.set("/hour/25", "", ttl=25 * 3600)
    since = server.index + 1
    server.advance(DAY_S)
    assert server.dump() == {"/hour/25": ""}
    assert server.index == since + 23
    with server.client.watch("/hour", since=since) as watch:
        received = [event.node.key for _, event in zip(range(24), watch, strict=False)]
    assert received == [f"/hour/{hour:02}" for hour in range(1, 25)]
    with pytest.raises(ValueError, match="does not go back"):
        server.advance(-1)


def test_frozen_time_shows_its_date_and_lets_nothing_end(server):
    server.freeze_time(datetime(2024, 2, 29, 12))  # noqa: DTZ001 -- UTC without a zone
    node = server.client.set("/a", "1", ttl=60).node
    assert node.expiration == datetime(2024, 2, 29, 12, 1, tzinfo=UTC)
    server.freeze_time()
    server.restart(clean=False)
    found = server.client.get("/a")
    assert (found.ttl, found.expiration) == (60, node.expiration)
    server.advance(59.5)
    assert server.client.get("/a").ttl == 1
    server.advance(0.5)
    with pytest.raises(KeyNotFound):
        server.client.get("/a")
    server.client.set("/a", "1", ttl=60)
    server.thaw_time()
    assert server.client.get("/a").expiration.date() == date(2024, 2, 29)


def test_a_dump_has_hidden_keys_and_bytes_that_are_no_text(server):
    server.client.set("/_hidden/_a", "1")
    server.client.mkdir("/empty")
    server.client.set_bytes("/raw", b"\xff\x00")
    server.client.set("/gone", "", ttl=1)
    server.freeze_time()
    server.advance(1)
    assert server.dump() == {"/_hidden/_a": "1", "/raw": "\udcff\x00"}


def test_a_reset_leaves_no_key_no_user_and_no_fault(server):
    client = server.client
    client.set("/_a/b", "1")
    client.set("/c", "1")
    call, run = client._operations.call, client._run
    root, json = b'{"user":"root","password":"x"}', "application/json"
    run(call("PUT", "/v2/auth/users/root", body=root, content_type=json))
    run(call("PUT", "/v2/auth/enable"))
    server.freeze_time()
    server.fill_disk()
    server.fail_next_fsync()
    index = server.index
    server.reset()
    assert server.dump() == {}
    assert server.index == index + 2
    client.set("/a", "1", ttl=1)
    users = run(call("GET", "/v2/auth/users"))
    assert users.body.strip() in (b"{}", b'{"users":null}', b'{"users":[]}'), users.body
    wait_until(lambda: not client.exists("/a"))
    server.crash()
    server.reset()
    assert server.dump() == {}


def test_an_index_can_be_waited_for(server):
    index = server.index
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(server.wait_for_index, index + 2, PATIENCE_S)
        server.client.set("/a", "1")
        server.client.set("/a", "2")
        waiting.result()
    server.wait_for_index(index + 2, timeout=0)
    with pytest.raises(TimeoutError, match=f"the index is {index + 2} after 0 s"):
        server.wait_for_index(index + 3, timeout=0)


def test_an_asynchronous_client_reaches_it(server):
    async def scenario():
        async with server.async_client() as client:
            await client.set("/a", "1")
            return (await client.get("/a")).value

    assert asyncio.run(scenario()) == "1"


@pytest.mark.parametrize("host", [Guest, Child])
def test_the_faults_of_its_flags_are_made(host):
    with pytest.raises((OSError, ProcessEnded), match="Input/output"):
        KvdFixture(host, enable_failpoints=True, failpoint="startAfterLock=error")


def test_a_fault_that_would_kill_the_test_is_refused():
    with pytest.raises(ValueError, match="walBeforeSync: that would kill the program"):
        KvdFixture(enable_failpoints=True, failpoint="walBeforeSync=crash")


def test_servers_fail_independently(guest):
    other = KvdFixture()
    with contextlib.closing(other):
        other.fail_next_fsync()
        with pytest.raises(OutcomeUnknown):
            other.client.set("/a", "1")
        guest.client.set("/a", "1")
        assert guest.failed is None


def test_a_failure_that_was_not_asked_for_is_raised_at_the_end():
    server = KvdFixture()
    server.fail_next_fsync()
    server.expects_failure = False
    with pytest.raises(OutcomeUnknown):
        server.client.set("/a", "1")
    with pytest.raises(OSError, match="Input/output"):
        server.close()
    with pytest.raises(RuntimeError, match="has ended"):
        server.start()


def left_behind() -> dict[str, object]:
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return {
        "threads": {thread.name for thread in threading.enumerate()},
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "processes": children,
        "directories": sorted(SERVERS.glob(f"kvd-test-{os.getpid()}-*")),
        "level": logging.getLogger("kvd").level,
        "handlers": [*logging.getLogger("kvd").handlers],
    }


def test_nothing_is_left_behind():
    def kinds():
        yield KvdFixture()
        yield KvdFixture(Child)

    for server in kinds():  # what is loaded once
        server.client.set("/a", "1")
        server.close()
    before = left_behind()
    for server in kinds():
        server.client.set("/a", "1")
        server.crash()
        server.start()
        assert left_behind() != before
        server.close()
        server.close()
        assert left_behind() == before
    for host, wrong in (
        (Guest, {"colour": "red"}),
        (Guest, {"event_history_limit": "many"}),
        (Guest, {"cert_file": "/none", "key_file": "/none"}),
        (Child, {"cert_file": "/none", "key_file": "/none"}),
    ):
        with pytest.raises(Exception, match=r"colour|event-history-limit|/none"):
            KvdFixture(host, **wrong)
        assert left_behind() == before


def test_the_program_hears_of_kvd_what_it_would_hear_without(caplog):
    with contextlib.closing(KvdFixture()) as server, contextlib.closing(KvdFixture()) as other:
        server.fill_disk()
        assert "refused until there is room" in caplog.text
        assert "INFO" not in {record.levelname for record in caplog.records}
        assert "refused until there is room" in "".join(server.log)
        assert "refused until there is room" not in "".join(other.log)
        assert "listening on" in "".join(other.log)
        with caplog.at_level(logging.INFO):
            other.restart()
        assert "stopped at index" in caplog.text
        server.clear_log()
        assert server.log == []
    assert logging.getLogger("kvd").level == logging.NOTSET
