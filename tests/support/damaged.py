"""Opening a store with a damaged index again and again, each time in a process of its own.

    python -m tests.support.damaged DIRECTORY

Reads one JSON array a line from standard input, [[offset, data in hex], ...]: what to write into
the index of the store in DIRECTORY, which was stopped cleanly. Answers each with one line: how the
process ended that then opened it and proved it to the end, and how the next one did. Everything is
put back in between, each file in its inode.
"""

import json
import os
import sys
from pathlib import Path

from kvd.crash_file import CrashFile
from kvd.storage.index.errors import BROKEN
from kvd.storage.index.integrity import completeness
from tests.support.stores import digest, open_store

INDEX = Path("index/data.mdb")
RIGHT, WRONG, REBUILT, TRY_AGAIN, BUG = 0, 1, 2, 75, 70


def main() -> None:
    directory = Path(sys.argv[1])
    store = open_store(directory)
    held = digest(store)
    store.close()
    kept = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    inode = directory.with_name("data.mdb")
    inode.hardlink_to(directory / INDEX)
    for number, line in enumerate(sys.stdin):
        put_back(directory, kept, inode)
        if number & 2:
            (directory / "index" / "CLEAN").unlink()
        with (directory / INDEX).open("r+b") as file:
            for offset, data in json.loads(line):
                file.seek(offset)
                file.write(bytes.fromhex(data))
        ends = [in_a_process(directory, held, late=number & 1) for _ in range(2)]
        sys.stdout.write(" ".join(map(str, ends)) + "\n")


def put_back(directory: Path, kept: dict[Path, bytes], inode: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file() and path not in kept:
            path.unlink()
    # The marks speak of one inode, which a rebuild replaces.
    (directory / INDEX).unlink()
    (directory / INDEX).hardlink_to(inode)
    for path, data in kept.items():
        path.write_bytes(data)


def in_a_process(directory: Path, held: str, *, late: int) -> int:
    """Return how a process ended: `RIGHT` or `REBUILT`, or what else became of it."""
    pid = os.fork()
    if pid == 0:
        status = BUG
        try:
            status = look(directory, held, late=late)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def look(directory: Path, held: str, *, late: int) -> int:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if late:
        completeness._ROWS_AT_START = 0
    try:
        store = open_store(directory, watch_crashes=CrashFile().watch)
    except BROKEN:
        return TRY_AGAIN
    try:
        while store.proof.rows_left is not None:
            store.proof.go_on(0)
        is_right = digest(store) == held
    except BROKEN:
        store.index.distrust()
        return TRY_AGAIN
    if not is_right:
        return WRONG
    return RIGHT if store.recovery.source in ("clean stop", "same boot") else REBUILT


if __name__ == "__main__":
    main()
