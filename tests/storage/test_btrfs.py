"""A full btrfs, which writes each block to a new place: it refuses writes as any other full disk.

Needs root, mkfs.btrfs and a loop device, and is skipped visibly without.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.server import Client

DISK_BYTES = 160 << 20
SEGMENT_BYTES = 1 << 20


@pytest.fixture
def btrfs(tmp_path):
    if os.geteuid() != 0 or shutil.which("mkfs.btrfs") is None:
        pytest.skip("making and mounting a btrfs needs root and mkfs.btrfs")
    image, place = tmp_path / "image", tmp_path / "disk"
    image.touch()
    os.truncate(image, DISK_BYTES)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", "-m", "single", image], capture_output=True, check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, place], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a btrfs: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> None:
    """Take all the room there is, also that which shows only once the rest is on the disk."""
    fd = os.open(place / "fill", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 4096):
            for _ in range(2):
                try:
                    while True:
                        os.write(fd, bytes(size))
                except OSError:
                    os.fsync(fd)
    finally:
        os.close(fd)


def until_refused(client: Client, first: int) -> int:
    """Write until that is refused; return the number of the key that was."""
    number = first
    while (status := client.put(f"/k{number}", "v" * 4000).status) == 201:
        number += 1
    assert status == 500
    return number


def test_a_full_btrfs_refuses_writes_and_serves_the_rest_over_restarts(btrfs, make_server):
    flags = ("--wal-segment-bytes", str(SEGMENT_BYTES))
    server = make_server(*flags, data_dir=btrfs / "data").start()
    client = server.client()
    assert all(client.put(f"/k{n}", "v" * 4000).status == 201 for n in range(100))
    fill(btrfs)
    refused = until_refused(client, 100)
    # Removals have room of their own, in the log and in the index.
    assert all(client.delete(f"/k{n}").status == 200 for n in range(50))
    assert client.get("/k60").json["node"]["value"] == "v" * 4000
    assert client.put("/refused", "v" * 4000).status == 500
    server.kill()
    fill(btrfs)
    client = server.start().client()
    assert client.get("/k0").status == 404
    assert client.get(f"/k{refused - 1}").json["node"]["value"] == "v" * 4000
    assert client.put("/refused", "v" * 4000).status == 500
    assert client.delete("/k60").status == 200
    assert server.terminate() == 0


def test_no_file_of_the_data_is_written_through_a_mapping(make_server, tmp_path):
    server = make_server().start()
    maps = Path(f"/proc/{server.pid}/maps").read_text().splitlines()
    data = [line for line in maps if str(tmp_path) in line]
    assert [line.split()[1] for line in data] == ["r--s"]
    assert data[0].endswith("/index/data.mdb")
    assert not (tmp_path / "data" / "index" / "lock.mdb").exists()
