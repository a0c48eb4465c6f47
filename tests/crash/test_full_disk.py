"""A small file system of its own: full, filling, read-only."""

import contextlib
import ctypes
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import EXIT_CANT_CREATE, SEGMENT, SMALL, faulty, start_or_die
from tests.support.log_texts import log_text
from tests.support.server import Answer, Server
from tests.support.waiting import wait_until


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
    # It may come behind the responses.
    server.wait_for_log(log_text("disk space is available again"))
    begun = server.stderr.count(log_text("writes are refused until there is room"))
    assert begun == 1 + kill
    assert server.stderr.count(log_text("disk space is available again")) == 1
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
    server.wait_for_log(log_text("no snapshot was made"))
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
    assert log_text("its term stays the old one for now") in server.stderr
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
