"""Injected faults, each against a server of its own: acknowledged answers hold afterwards.

Killed at every failpoint, a sync that fails, a disk that is full or slow, an index that is damaged.
`pytest -m durability_full` does the same at many more moments.
"""

import contextlib
import os
import shutil
import signal
import threading
import time

import pytest

from tests.support.faults import (
    EXIT_IO,
    EXIT_TRY_AGAIN,
    GONE,
    SEGMENT,
    SMALL,
    Script,
    ends_by_an_io_error,
    faulty,
    start_or_die,
)
from tests.support.log_texts import log_text
from tests.support.server import Answer, Server
from tests.support.waiting import wait_until


@pytest.mark.parametrize("nth", [2, 3, 7])
def test_a_failing_sync_ends_the_server_and_acknowledges_nothing(make_server, nth):
    server = make_server()
    server.start(*faulty(f"walBeforeSync=error:EIO@{nth}"))
    ends_by_an_io_error(server, Script(nth), nth)


@pytest.mark.durability_full
@pytest.mark.parametrize("nth", range(2, 202))
@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
def test_so_does_the_nth_failing_sync(make_server, nth, code):
    server = make_server()
    server.start(*faulty(f"walBeforeSync=error:{code}@{nth}"))
    ends_by_an_io_error(server, Script(nth), nth)


def test_a_failing_sync_ends_the_start_too(make_server):
    server = make_server()
    assert not start_or_die(server, *faulty("walBeforeSync=error:EIO@1"))
    assert server.wait() == EXIT_IO
    server.start()
    assert server.client().get("/").index == 1


def under_strace(inject: str) -> tuple[str, str]:
    """What launches a kvd whose system calls fail; it is the kvd that has the process's id."""
    strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null"]
    strace += ["-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]
    program = (
        f"import os, sys; strace = {strace!r}; "
        "kvd = [sys.executable, '-m', 'kvd', *sys.argv[1:], '--wal-sync', 'thread']; "
        "os.execvp('strace', [*strace, *kvd])"
    )
    return "-c", program


def traceable() -> bool:
    """Whether strace is here and may trace."""
    return shutil.which("strace") is not None and os.system("strace -qq -o /dev/null true") == 0


@pytest.mark.parametrize(
    "nth", [2, 5, *(pytest.param(n, marks=pytest.mark.durability_full) for n in range(6, 201))]
)
def test_a_sync_that_the_system_fails_ends_the_server(make_server, nth):
    if not traceable():
        pytest.skip("strace is not here, or may not trace")
    # Calls are counted by thread: the one that syncs begins with the first write.
    server = make_server(launch=under_strace(f"fdatasync:error=EIO:when={nth}")).start()
    server.launch = ("-m", "kvd")
    ends_by_an_io_error(server, Script(nth), nth)


def damage_the_last_data_frame(server: Server) -> None:
    path = max((server.data_dir / "wal").glob("*.wal"))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"the last value")
    data[at] ^= 1
    path.write_bytes(data)


def test_damage_to_the_last_write_before_a_pause_is_refused(make_server):
    server = make_server().start()
    server.client().put("/a", "the last value")
    before = log_end(server)
    wait_until(lambda: log_end(server) > before)  # the heart beats
    beaten = log_end(server)
    server.client().put("/a", "and another", prevValue="something else")  # refused: no frame
    time.sleep(1.5)  # one beat only
    assert log_end(server) == beaten
    server.kill()
    damage_the_last_data_frame(server)
    # An index that can be reused holds the write; whoever needs the log must not lose it silently.
    assert not start_or_die(server, "--rebuild-index")
    assert server.wait() == 65
    assert "acknowledged writes are damaged" in server.stderr


def log_end(server: Server) -> int:
    path = max((server.data_dir / "wal").glob("*.wal"))
    return len(path.read_bytes().rstrip(b"\0"))


def test_heartbeats_are_no_part_of_the_state(make_server):
    server = make_server(*SMALL).start()
    script = Script(3)
    client = server.client()
    at_start = int(client.get("/").headers["x-raft-index"])
    first_index = script.index
    for _ in range(3):
        script.write(client)
        before = log_end(server)
        wait_until(lambda before=before: log_end(server) > before)
    records = int(client.get("/").headers["x-raft-index"]) - at_start
    assert records == script.index - first_index
    server.kill()
    server.start()
    script.check(server)
    server.kill()
    server.start("--rebuild-index")
    script.check(server)
    assert server.terminate() == 0
    server.start()
    script.check(server)


def test_reads_do_not_wait_for_a_slow_disk(make_server):
    server = make_server().start(*faulty("walBeforeSync=delay:2@3"))
    client = server.client()
    assert client.put("/a", "1").status == 201
    answers: list[Answer] = []
    writer = threading.Thread(target=lambda: answers.append(server.client().put("/a", "2")))
    writer.start()
    times = []
    began = time.monotonic()
    while time.monotonic() - began < 1.0:
        asked = time.monotonic()
        assert client.get("/a").json["node"]["value"] == "1"
        times.append(time.monotonic() - asked)
        time.sleep(0.01)
    assert not answers
    assert sorted(times)[len(times) * 9 // 10] < 0.05
    writer.join()
    assert answers[0].status == 200
    server.wait_for_log(log_text("the disk is slow: a sync of the log took") + " 2.")


@pytest.mark.parametrize("place", ["snapshotBeforeCopy", "snapshotBeforeWrite"])
def test_no_client_waits_for_a_snapshot_that_stands_still(make_server, place):
    server = make_server("--snapshot-count", "30").start(*faulty(f"{place}=delay:600"))
    client = server.client()
    for i in range(300):
        assert client.put("/a", i).index == i + 2
        assert client.get("/a").json["node"]["value"] == str(i)
    # It is begun when the index is written to, by the tick at the latest.
    snap = server.data_dir / "snap"
    wait_until(lambda: [path.name for path in snap.iterdir()] == ["scratch.tmp"])
    assert client.put("/a", 300).index == 302
    server.kill()
    server.start("--rebuild-index")
    assert server.client().get("/a").json["node"]["value"] == "300"


def test_damage_that_a_commit_meets_ends_the_server_and_is_put_right(make_server):
    server = make_server().start(*faulty("indexBeforeCommit=error:EBADMSG@4"))
    script = Script(5)
    script.write_until_dead(server)
    assert server.wait() == EXIT_TRY_AGAIN
    assert log_text("the next start rebuilds it") in server.stderr
    server.start()
    assert "from log" in server.stderr
    script.check(server)


def test_a_full_map_keeps_changes_in_memory_and_nothing_waits(make_server):
    server = make_server().start(*faulty("indexBeforeCommit=error:ENOSPC@2"))
    client = server.client()
    assert client.put("/a", "1").status == 201
    server.wait_for_log(log_text("changes wait in memory"))
    assert client.get("/a").json["node"]["value"] == "1"
    server.wait_for_log(log_text("the index has taken the changes that waited"))
    assert client.request("GET", "/health").json == {"health": "true"}


def test_an_index_that_cannot_be_written_though_there_is_room_ends_the_server(make_server):
    faults = [f"indexBeforeCommit=error:EIO@{nth}" for nth in (2, 3, 4)]
    server = make_server().start(*faulty(*faults))
    client = server.client()
    assert client.put("/a", "1").status == 201
    assert server.wait() == EXIT_IO
    assert server.stderr.count(log_text("changes wait in memory")) == 1
    assert log_text("could not be written though there is room") in server.stderr
    server.start()
    assert "from log" in server.stderr
    assert server.client().get("/a").json["node"]["value"] == "1"


def test_an_index_that_fails_for_a_moment_costs_a_moment(make_server):
    faults = [f"indexBeforeCommit=error:EIO@{nth}" for nth in (2, 3, 5, 6)]
    server = make_server().start(*faulty(*faults))
    client = server.client()
    for times in (1, 2):
        client.put("/a", times)
        wait_until(
            lambda times=times: server.stderr.count(log_text("the index has taken")) == times
        )
    assert server.terminate() == 0
    assert server.stderr.count(log_text("changes wait in memory")) == 2


def test_an_index_that_cannot_be_written_at_the_start_refuses_it_in_one_line(make_server):
    server = make_server()
    assert not start_or_die(server, *faulty("indexBeforeCommit=error:EIO"))
    assert server.wait() == EXIT_IO
    assert server.stderr.splitlines()[-1].endswith("Nothing is lost: start again with room")
    server.start()


def test_a_clean_stop_whose_index_cannot_be_synced_leaves_no_mark(make_server):
    server = make_server().start(*faulty("indexBeforeSync=error:EIO"))
    assert server.client().put("/a", "1").status == 201
    assert server.terminate() == EXIT_IO
    assert "Traceback" not in server.stderr
    server.start()
    assert "from log" in server.stderr
    assert server.client().get("/a").json["node"]["value"] == "1"


@pytest.mark.parametrize("recursive", ["false", "true"])
def test_damage_that_a_read_meets_is_not_served_and_is_put_right(make_server, recursive):
    server = make_server().start()
    client = server.client()
    value = "precious" * 200
    assert client.put("/a", value).status == 201
    server.kill()
    server.start("--rebuild-index")
    client = server.client()
    path = server.data_dir / "index" / "data.mdb"
    data = path.read_bytes()
    with path.open("r+b") as file:  # as a bit that flips on the disk, or in the page cache
        at = data.find(b"preciousprecious")
        while at >= 0:
            file.seek(at)
            file.write(b"q")
            at = data.find(b"preciousprecious", at + len(value))
    with contextlib.suppress(*GONE):
        client.get("/" if recursive == "true" else "/a", recursive=recursive)
        pytest.fail("it was served")
    assert server.wait() == EXIT_TRY_AGAIN
    server.start()
    assert server.client().get("/a").json["node"]["value"] == value


def test_what_was_written_under_larger_segments_expires_and_goes_under_smaller_ones(make_server):
    server = make_server("--max-header-bytes", str(1 << 20)).start()
    client = server.client()
    expiring, plain = ("/" + letter * 200_000 for letter in "ep")
    assert client.put(expiring, "1", ttl=1).status == 201
    assert client.put(plain, "1").status == 201
    server.kill()
    time.sleep(1)
    server.start("--wal-segment-bytes", str(SEGMENT))
    client = server.client()
    assert client.get(expiring).status == 404
    refused = client.put(plain, "2")
    assert (refused.status, refused.json["errorCode"]) == (400, 210)
    index = client.delete(plain).index
    assert client.put("/a", "1").status == 201
    server.kill()
    server.start("--wal-segment-bytes", str(SEGMENT), "--rebuild-index")
    answer = server.client().get("/")
    assert [node["key"] for node in answer.json["node"]["nodes"]] == ["/a"]
    assert answer.index == index + 1


def test_a_second_signal_ends_it_at_once(make_server):
    server = make_server().start(*faulty("stopBeforeIndex=delay:60"))
    server.client().put("/a", "1")
    server.signal(signal.SIGTERM)
    server.wait_for_log("stopping")
    time.sleep(0.2)  # for the first signal's handler to be gone
    server.signal(signal.SIGTERM)
    assert server.wait(5) == -signal.SIGTERM
    server.start()
    assert server.client().get("/a").json["node"]["value"] == "1"


@pytest.mark.durability_full
def test_a_stop_that_takes_ten_seconds_is_ended(make_server):
    server = make_server().start(*faulty("stopBeforeIndex=delay:60"))
    server.client().put("/a", "1")
    began = time.monotonic()
    assert server.terminate() == EXIT_TRY_AGAIN
    assert 9 < time.monotonic() - began < 12
    server.start()
    assert server.client().get("/a").json["node"]["value"] == "1"
