"""Faults made on purpose, each against a server of its own: what was told is true afterwards.

Killed at every failpoint, a sync that fails, a disk that is full or slow, an index that is damaged.
`pytest -m durability_full` does the same at many more moments.
"""

import contextlib
import ctypes
import errno
import http.client
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvd.storage import failpoints
from tests.support.server import Answer, Client, Server

SEGMENT = 64 * 1024
KILLED = -signal.SIGKILL
EXIT_CANT_CREATE, EXIT_IO, EXIT_TRY_AGAIN = 73, 74, 75
SMALL = ("--wal-segment-bytes", str(SEGMENT), "--snapshot-count", "30")
# What a client sees of a server that dies under it.
GONE = (OSError, http.client.HTTPException)
UNKNOWN = "outcome unknown"


def faulty(*faults: str) -> list[str]:
    return ["--enable-failpoints", *(f"--failpoint={fault}" for fault in faults)]


def start_or_die(server: Server, *flags: str) -> bool:
    """Start a server that may end before it listens; whether it listens."""
    try:
        server.start(*flags)
    except AssertionError:
        server.wait()
        return False
    return True


class Script:
    """One client that writes as it must to take the server everywhere, and what it was told."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.values: dict[str, str] = {}
        self.doubt: tuple[str, str | None] | None = None
        self.index = 1

    def write(self, client: Client) -> None:
        """Write once. What may have happened, should no answer come, stands in `doubt`."""
        key = f"/k{self.dice.randrange(20)}"
        if key in self.values and self.dice.random() < 0.2:
            self.doubt = (key, None)
            answer = client.delete(key)
        else:
            value = f"{self.index}-" + "v" * self.dice.choice((10, 1000, 4000))
            self.doubt = (key, value)
            answer = client.put(key, value)
        if answer.status == 500:
            assert UNKNOWN in answer.json["cause"]
            raise ConnectionError
        assert answer.status in (200, 201), answer.body
        assert answer.index > self.index
        self.index = answer.index
        self._apply()

    def write_until_dead(self, server: Server, *, limit_s: float = 60.0) -> None:
        client = server.client()
        end = time.monotonic() + limit_s
        with contextlib.suppress(*GONE):
            while time.monotonic() < end:
                self.write(client)

    def check(self, server: Server) -> None:
        """Compare with what the server holds; a write in doubt is settled by what is found."""
        answer = server.client().get("/")
        found = {node["key"]: node["value"] for node in answer.json["node"].get("nodes", ())}
        if self.doubt is not None and found != self.values:
            self._apply()
        self.doubt = None
        assert found == self.values
        assert self.index <= answer.index <= self.index + 1
        self.index = answer.index

    def _apply(self) -> None:
        assert self.doubt is not None
        (key, value), self.doubt = self.doubt, None
        if value is None:
            del self.values[key]
        else:
            self.values[key] = value


def leave_a_torn_tail(server: Server) -> None:
    """Append to the log of a killed server what a write that never finished leaves."""
    path = max((server.data_dir / "wal").glob("*.wal"))
    data = path.read_bytes()
    end = -(-len(data.rstrip(b"\0")) // 8) * 8 + 8
    with path.open("r+b") as file:
        file.seek(end)
        file.write(b"KVDF torn")


# Killed at every failpoint


def survives_a_crash(make_server: Any, fault: str, *, seed: int = 1) -> None:
    server = make_server(*SMALL)
    script = Script(seed)
    server.start()
    client = server.client()
    for _ in range(20):
        script.write(client)
    server.kill()
    if fault.startswith("tail"):
        leave_a_torn_tail(server)
    if start_or_die(server, *faulty(fault)):
        if fault.startswith(("stop", "indexBeforeSync")):
            script.check(server)
            client = server.client()
            for _ in range(20):
                script.write(client)
            server.signal(signal.SIGTERM)
        else:
            script.write_until_dead(server)
    assert server.wait() == KILLED, f"{fault} did not happen:\n{server.stderr}"
    server.start()
    script.check(server)
    client = server.client()
    for _ in range(20):
        script.write(client)
    server.kill()
    server.start("--rebuild-index")
    script.check(server)
    assert server.terminate() == 0


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_what_was_acknowledged_survives_a_crash_at(make_server, name):
    survives_a_crash(make_server, f"{name}=crash")


@pytest.mark.durability_full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("nth", [2, 3, 5, 8, 13, 40])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in failpoints.NAMES
        if name.startswith(("wal", "segment", "index", "snapshot", "purge"))
        and name != "indexBeforeSync"  # so small a store has that only at its stop
    ],
)
def test_so_it_does_a_crash_the_nth_time_at(make_server, name, nth):
    if nth > 8 and name.startswith(("segment", "snapshot", "purge")):
        nth = 6
    survives_a_crash(make_server, f"{name}=crash@{nth}", seed=nth)


@pytest.mark.parametrize("length", [1, 40, 100, 500])
def test_a_torn_frame_is_cut(make_server, length):
    survives_a_crash(make_server, f"walBeforeWrite=tear:{length}@{length % 7 + 3}")


@pytest.mark.durability_full
@pytest.mark.parametrize("length", [*range(0, 130, 7), 1000, 4000])
@pytest.mark.parametrize("nth", [4, 11])
def test_a_torn_frame_is_cut_wherever_it_ends(make_server, length, nth):
    survives_a_crash(make_server, f"walBeforeWrite=tear:{length}@{nth}", seed=length)


@pytest.mark.parametrize("length", [0, 1, 2000])
def test_a_torn_segment_header_is_no_part_of_the_log(make_server, length):
    survives_a_crash(make_server, f"segmentBeforeHeader=tear:{length}")


# A sync that fails


def ends_by_an_io_error(server: Server, script: Script, nth: int) -> None:
    script.write_until_dead(server)
    assert server.wait() == EXIT_IO, server.stderr
    assert "stopping at once" in server.stderr
    assert not (server.data_dir / "index" / "RUNNING").exists()
    assert len(script.values) <= nth
    server.start()
    assert "recovered" in server.stderr
    script.check(server)
    script.write(server.client())
    server.kill()


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


# The last acknowledged frame


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


def wait_until(condition: Any, *, limit_s: float = 20.0) -> float:
    """Wait until something holds; return how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it never did"
        time.sleep(0.02)
    return time.monotonic() - began


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


# A slow disk


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
    server.wait_for_log("the disk is slow: a sync of the log took 2.")


@pytest.mark.parametrize("place", ["snapshotBeforeCopy", "snapshotBeforeWrite"])
def test_nobody_waits_for_a_snapshot_that_stands_still(make_server, place):
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


# A damaged index


def test_damage_that_a_commit_meets_ends_the_server_and_is_put_right(make_server):
    server = make_server().start(*faulty("indexBeforeCommit=error:EBADMSG@4"))
    script = Script(5)
    script.write_until_dead(server)
    assert server.wait() == EXIT_TRY_AGAIN
    assert "the next start rebuilds it" in server.stderr
    server.start()
    assert "from log" in server.stderr
    script.check(server)


def test_a_full_map_keeps_changes_in_memory_and_nothing_waits(make_server):
    server = make_server().start(*faulty("indexBeforeCommit=error:ENOSPC@2"))
    client = server.client()
    assert client.put("/a", "1").status == 201
    server.wait_for_log("changes wait in memory")
    assert client.get("/a").json["node"]["value"] == "1"
    server.wait_for_log("the index has taken the changes that waited")
    assert client.request("GET", "/health").json == {"health": "true"}


def test_an_index_that_cannot_be_written_though_there_is_room_ends_the_server(make_server):
    faults = [f"indexBeforeCommit=error:EIO@{nth}" for nth in (2, 3, 4)]
    server = make_server().start(*faulty(*faults))
    client = server.client()
    assert client.put("/a", "1").status == 201
    assert server.wait() == EXIT_IO
    assert server.stderr.count("changes wait in memory") == 1
    assert "could not be written though there is room" in server.stderr
    server.start()
    assert "from log" in server.stderr
    assert server.client().get("/a").json["node"]["value"] == "1"


def test_an_index_that_fails_for_a_moment_costs_a_moment(make_server):
    faults = [f"indexBeforeCommit=error:EIO@{nth}" for nth in (2, 3, 5, 6)]
    server = make_server().start(*faulty(*faults))
    client = server.client()
    for times in (1, 2):
        client.put("/a", times)
        wait_until(lambda times=times: server.stderr.count("the index has taken") == times)
    assert server.terminate() == 0
    assert server.stderr.count("changes wait in memory") == 2


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


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(path), b"tmpfs", 0, b"size=24m,mode=700") != 0:
        pytest.skip(f"cannot mount a tmpfs: {os.strerror(ctypes.get_errno())}")
    try:
        yield path
    finally:
        assert libc.umount2(bytes(path), 2) == 0


def test_a_disk_that_is_read_only_is_refused_in_one_line(make_server, small_disk):
    server = make_server(*SMALL, data_dir=small_disk / "data").start()
    assert server.client().put("/a", "1").status == 201
    assert server.terminate() == 0
    libc = ctypes.CDLL(None, use_errno=True)
    remount, read_only = 0x20, 1
    assert libc.mount(b"", bytes(small_disk), b"", remount | read_only, None) == 0
    server = make_server(data_dir=small_disk / "data")
    assert not start_or_die(server)
    assert server.wait() == EXIT_CANT_CREATE
    (line,) = server.stderr.splitlines()
    assert line.endswith(f"{small_disk}/data/LOCK: Read-only file system")


class Ballast:
    """A file that takes all the room there is."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "ballast"

    def fill(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def drop(self) -> None:
        self._path.unlink()


def refused_for_want_of_room(answer: Answer) -> bool:
    if answer.status != 500:
        return False
    body = json.loads(answer.body)
    assert body["errorCode"] == 300
    assert body["cause"] == "no space left on device (wal)"
    assert body["index"] == 0
    return True


def full_disk_round(server: Server, ballast: Ballast, *, kill: bool) -> None:
    client = server.client()
    for number in range(20):
        assert client.put(f"/d/{number}", "v" * 1000).status in (200, 201)
    client.put("/soon", "gone", ttl=3)
    ballast.fill()
    assert wait_until(lambda: refused_for_want_of_room(client.put("/new", "1"))) < 2
    term = int(client.get("/").headers["x-raft-term"])
    if kill:
        server.kill()
        server.start()
        client = server.client()
    assert client.get("/d/1").json["node"]["value"] == "v" * 1000
    assert client.request("GET", "/health").status == 503
    assert refused_for_want_of_room(client.put("/d/1", "other"))
    assert refused_for_want_of_room(client.post("/d", "other"))
    assert client.delete("/d/0").status == 200
    assert client.delete("/d/1", prevValue="v" * 1000).status == 200
    assert client.delete("/d/1").status == 404
    wait_until(lambda: client.get("/soon").status == 404)
    for number in range(2, 18):
        assert client.delete(f"/d/{number}").status == 200
    index = client.get("/").index
    ballast.drop()
    assert wait_until(lambda: client.request("GET", "/health").status == 200) < 2
    assert client.put("/d/1", "again").index == index + 1
    assert int(client.get("/").headers["x-raft-term"]) == term + kill


@pytest.mark.parametrize("kill", [False, True], ids=["", "killed while it is full"])
def test_a_full_disk_refuses_writes_and_nothing_else_until_there_is_room(
    make_server, small_disk, kill
):
    server = make_server("--wal-segment-bytes", str(1 << 20), data_dir=small_disk / "data").start()
    full_disk_round(server, Ballast(small_disk), kill=kill)
    begun = server.stderr.count("writes are refused until there is room")
    assert begun == 1 + kill
    assert server.stderr.count("there is room again") == 1
    before = server.client().get("/", recursive="true")
    server.kill()
    server.start("--rebuild-index")
    after = server.client().get("/", recursive="true")
    assert (after.json, after.index) == (before.json, before.index)
    assert server.terminate() == 0


@pytest.mark.durability_full
@pytest.mark.timeout(1200)
def test_so_it_is_fifty_times(make_server, small_disk):
    server = make_server("--wal-segment-bytes", str(1 << 20), data_dir=small_disk / "data").start()
    for number in range(50):
        full_disk_round(server, Ballast(small_disk), kill=number % 2 == 1)
    assert server.terminate() == 0


def test_a_snapshot_that_finds_no_room_does_no_harm(make_server, small_disk):
    flags = ("--wal-segment-bytes", str(1 << 20), "--snapshot-count", "200")
    server = make_server(*flags, data_dir=small_disk / "data").start()
    client = server.client()
    for number in range(150):
        client.put(f"/{number}", "v" * 4000)
    ballast = Ballast(small_disk)
    ballast.fill()
    for number in range(60):
        assert client.delete(f"/{number}").status == 200
    server.wait_for_log("no snapshot was made")
    ballast.drop()
    wait_until(lambda: client.put("/new", "1").status == 201)
    server.kill()
    server.start("--rebuild-index")
    assert len(server.client().get("/").json["node"]["nodes"]) == 91


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EMFILE"])
def test_a_segment_that_cannot_be_reserved_leaves_room_for_removals(make_server, code):
    """A quota, say, of which the free space of the file system tells nothing."""
    flags = faulty(f"segmentBeforeReserve=error:{code}")
    server = make_server("--wal-segment-bytes", str(SEGMENT)).start()
    client = server.client()
    for number in range(12):
        client.put(f"/{number}", "v" * 1000)
    server.kill()
    (server.data_dir / "wal" / "next.tmp").unlink(missing_ok=True)
    server.start(*flags)
    client = server.client()
    written = 0
    while (answer := client.put(f"/more{written}", "v" * 1000)).status == 201:
        written += 1
    cause = os.strerror(getattr(errno, code)).lower()
    assert answer.json["cause"] == f"{cause} (wal)"
    for number in range(12):
        assert client.delete(f"/{number}").status == 200
    server.kill()
    server.start()
    client = server.client()
    assert len(client.get("/").json["node"]["nodes"]) == written
    assert client.put("/more", "1").status == 201


def test_a_start_that_finds_no_room_is_logged_when_there_is_some(make_server):
    server = make_server().start()
    server.client().put("/a", "1")
    server.kill()
    # The start itself, the first batch after it, and one probe.
    server.start(*faulty(*(f"walBeforeWrite=error:ENOSPC@{nth}" for nth in (1, 2, 3))))
    assert "its term stays the old one for now" in server.stderr
    client = server.client()
    assert client.get("/a").headers["x-raft-term"] == "1"
    wait_until(lambda: client.get("/a").headers["x-raft-term"] == "2")
    wait_until(lambda: client.request("GET", "/health").status == 200)
    assert client.put("/a", "2").headers["x-raft-term"] == "2"
    server.kill()
    server.start("--rebuild-index")
    assert server.client().get("/a").headers["x-raft-term"] == "3"


@pytest.mark.parametrize("length", [0, 30, 45, 200])
def test_a_write_that_is_taken_in_part_is_refused_whole(make_server, length):
    server = make_server().start(*faulty(f"walBeforeWrite=short:{length}@3"))
    client = server.client()
    index = client.put("/a", "1").index
    assert refused_for_want_of_room(client.put("/a", "2" * 150))
    assert client.get("/a").json["node"]["value"] == "1"
    assert wait_until(lambda: client.request("GET", "/health").status == 200) < 2
    assert client.put("/a", "3").index == index + 1
    server.kill()
    server.start("--rebuild-index")
    assert server.client().get("/a").json["node"]["value"] == "3"


# Smaller segments than before


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


# A stop that takes too long


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
