"""One hash of all that a store means, wherever it came from: the oracle of every comparison.

sha256 over CBOR items, in this order:

    ["kvd digest 1", index, history limit, oldest event]
        and the offset of the clock, where that is not 0
    [path, value | nil, created, modified, expiration ns, is dir]
        each node below the root: the children of a directory by name, then what is below each of
        them, last name first
    [index, kind, key, value | nil, dir, created, expiration ns, refresh, time ns, node before]
        each event of the history, in order; the node before as above without path, or nil
    [kind, what, name, document, secret | nil]
        each entry beside the keys, by what and name

It leaves out what no client can see (ids of directories, what hangs below removed ones) and what
belongs to a process or to one copy of the store (terms, statistics, store and cluster ids, places
in the log).

Run as a program, it tells the digest of an index that nobody writes to, and how far that index
goes, as one line of JSON: in a process of its own, because a damaged LMDB file may end the process
that reads it.

    python -m kvd.storage.tools.digest INDEX_DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cbor2
import lmdb

from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import Position
from kvd.storage.format.node import ROOT, CorruptIndex, Node
from kvd.storage.format.tables import TABLES
from kvd.storage.index.index_view import STORE_KEY, IndexView
from kvd.storage.index.integrity.completeness import prove_all
from kvd.storage.index.state import State


class IndexState(NamedTuple):
    """What an index holds: its digest, the place in the log up to which that is, and whose it is.

    `store_uuid` is None where it does not say.
    """

    digest: str
    applied: Applied
    store_uuid: bytes | None


def digest(view: IndexView | State) -> str:
    """Return the hash of what a view sees, 64 hexadecimal digits.

    It takes about ten microseconds a node and memory for the paths of directories only.

    Raises:
        CorruptIndex: a row fails its checksum.
    """
    applied = view.applied
    hashed = hashlib.sha256()
    offset = [applied.clock_offset_ns] if applied.clock_offset_ns else []
    head = [applied.index, applied.history_limit, applied.oldest_event, *offset]
    hashed.update(cbor2.dumps(["kvd digest 1", *head]))
    directories: list[tuple[bytes, int]] = [(b"", ROOT.dir_id)]
    while directories:
        path, dir_id = directories.pop()
        for name, node in view.children(dir_id):
            child = path + b"/" + name
            hashed.update(cbor2.dumps([child, *_fields(node)]))
            if node.dir_id:
                directories.append((child, node.dir_id))
    for change, prev, time_ns in view.events(applied.oldest_event):
        kind, index, *rest = change
        before = None if prev is None else _fields(prev)
        hashed.update(cbor2.dumps([index, kind, *rest, time_ns, before]))
    for entry in view.entries():
        hashed.update(cbor2.dumps([*entry]))
    return hashed.hexdigest()


def index_state(directory: Path) -> IndexState:
    """Read a whole index that nobody writes to, in a process of its own; it is not changed.

    Raises:
        CorruptIndex: it cannot be read, or a row of it is damaged.
    """
    ended = subprocess.run(  # noqa: S603 -- our own module
        [sys.executable, "-m", "kvd.storage.tools.digest", str(directory)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode < 0:
        raise CorruptIndex(f"reading it ends in {signal.Signals(-ended.returncode).name}")
    if ended.returncode:
        raise CorruptIndex(ended.stderr.strip().rpartition("\n")[2])
    fields = json.loads(ended.stdout)
    applied = bytes.fromhex(fields["applied"])
    whose = fields["store"]
    store_uuid = None if whose is None else bytes.fromhex(whose)
    return IndexState(str(fields["digest"]), Applied.decode(applied), store_uuid)


def without_place(applied: Applied) -> Applied:
    """Return how far a log has been performed, without where in which file that was."""
    return applied._replace(position=Position(0, 0, 0, 0))


def _fields(node: Node) -> list[bytes | int | bool | None]:
    return [*node[:4], bool(node.dir_id)]


def main(arguments: Sequence[str]) -> int:
    """Do what the head of this module says of it as a program; return its exit status."""
    (directory,) = arguments
    try:
        env = lmdb.open(os.fsencode(directory), readonly=True, lock=False, max_dbs=len(TABLES))
        tables = {name: env.open_db(name, create=False) for name in TABLES}
        prove_all(env, tables)
        with env.begin() as txn:
            view = IndexView(txn, tables)
            whose = txn.get(STORE_KEY)
            state = {
                "digest": digest(view),
                "applied": view.applied.encode().hex(),
                "store": None if whose is None else whose.hex(),
            }
    except (CorruptIndex, lmdb.Error, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(state) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
