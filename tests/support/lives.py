"""Stores for tests of recovery: lived in, killed, damaged, opened again."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.stores import digest, open_store

ROOT = Path(__file__).parent.parent.parent
SMALL_SEGMENT = 8192

# Lives a life in a process of its own, tells what it holds, and dies without another word.
LIVE_AND_DIE = """
import os, sys
from pathlib import Path
from random import Random
from tests.support.stores import NOW_NS, digest, live, open_store
store = open_store(Path(sys.argv[1]), segment_bytes_max=int(sys.argv[3]))
store.start_term(NOW_NS, 40)
live(store, Random(int(sys.argv[2])), 60)
os.write(1, digest(store).encode())
os._exit(9)
"""


def live_and_die(path, seed, segment_bytes_max=SMALL_SEGMENT):
    """Return the digest of what a process held when it died."""
    arguments = [sys.executable, "-c", LIVE_AND_DIE, path, str(seed), str(segment_bytes_max)]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 9, ended.stderr
    return ended.stdout


def reopened(path, **options):
    """Open a store, and return what it holds, and where from."""
    store = open_store(path, **options)
    try:
        return digest(store), store.recovery
    finally:
        store.close()


def damage(path, offset=-1000):
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(offset % size)
        byte = file.read(1)[0]
        file.seek(offset % size)
        file.write(bytes((byte ^ 0x10,)))


def segments(path):
    return sorted((path / "wal").glob("*.wal"))


def append_garbage(path, offset):
    with segments(path)[-1].open("r+b") as file:
        file.seek(offset)
        file.write(b"KVDF and what was never acknowledged")
