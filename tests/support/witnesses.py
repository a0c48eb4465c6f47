"""Stores for tests of evidence: written and killed, with marks that are changed."""

import json
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.v2.commands import Set
from tests.support.stores import digest, open_store, write

ROOT = Path(__file__).parent.parent.parent
SMALL_SEGMENT = 8192

# Writes some keys, and dies.
WRITE_AND_DIE = """
import os, sys
from pathlib import Path
from kvd.v2.commands import Set
from tests.support.stores import digest, open_store, write
store = open_store(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    write(store, Set(b"/%d" % number, b"v" * 100))
os.write(1, digest(store).encode())
os._exit(9)
"""


def write_and_die(path, writes):
    arguments = [sys.executable, "-c", WRITE_AND_DIE, path, str(writes)]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 9, ended.stderr
    return ended.stdout


def add(path, first, last):
    """Write keys to a store and stop it cleanly."""
    store = open_store(path, segment_bytes_max=1 << 20)
    for number in range(first, last):
        write(store, Set(b"/%d" % number, b"v" * 100))
    held = digest(store)
    store.close()
    return held


def opened(path, **options):
    """Open a store; return its digest and where its index came from."""
    store = open_store(path, **options)
    try:
        return digest(store), store.recovery.source
    finally:
        store.close()


def verify(path, capsys):
    """Return the exit status of `kvdctl verify` and what it printed."""
    capsys.readouterr()
    status = kvdctl(["verify", str(path)])
    return status, capsys.readouterr().out


def set_in_place(path, data):
    """Give a file another content, in its inode."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


def last_segment(path):
    return max((path / "wal").glob("*.wal"))


def marked(path, name="CLEAN"):
    """Skip where a mark is missing: no kernel before 6.8 can name a mount for ever."""
    if not (path / "index" / name).exists():
        pytest.skip("statx of this kernel knows no unique mount id (Linux 6.8)")


def change_mark(path, **changes):
    line, _, _ = path.read_text().strip().rpartition(" ")
    line = json.dumps(json.loads(line) | changes, sort_keys=True)
    path.write_text(f"{line} {crc32(line.encode()):08x}\n")


WITNESSES = ["CLEAN", "RUNNING", "data.mdb", "a snapshot", "a broken snapshot"]


def keep_only(path, witness):
    """Have nothing but one witness name the last frame."""
    kept = path / "index" / witness
    if "snapshot" not in witness:
        assert kept.exists()
        for file in (path / "snap").iterdir():
            file.unlink()
    for file in list((path / "index").iterdir()):
        if file != kept:
            file.unlink()
    if witness == "a broken snapshot":
        (file,) = (path / "snap").iterdir()
        file.write_bytes(b"")
        file.rename(file.with_name(file.name + ".broken"))
