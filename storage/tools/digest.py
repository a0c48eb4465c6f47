"""The digest of a store's content: equal for two stores that clients cannot tell apart.

sha256 over CBOR items, in this order:

    ["kvd digest 1", index, history limit, oldest event]
        and the offset of the clock, if it is not 0
    [path, value | nil, created, modified, expiration ns, is dir]
        each node below the root: the children of a directory by name, then the nodes below each
        of them, last name first
    [index, kind, key, value | nil, dir, created, expiration ns, refresh, time ns, node before]
        each event of the history, in order; the node before as above without path, or nil
    [kind, what, name, content, secret | nil]
        each document (users, roles, members), by what and name

It leaves out internals (ids of directories, nodes below removed ones) and what belongs to a process
or to one copy of the store (terms, statistics, store and cluster ids, positions in the log).

As a program, this module prints the digest of an index without a writer, and the position applied,
as one line of JSON. A process of its own is needed because a damaged LMDB file may kill the process
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
    """The content of an index: its digest, the position applied, and the store it belongs to.

    `store_uuid` is None if the index does not name its store.
    """

    digest: str
    applied: Applied
    store_uuid: bytes | None


def digest(view: IndexView | State) -> str:
    """Return the digest of a view, 64 hexadecimal digits.

    Takes about ten microseconds a node, and memory for the paths of directories only.

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
    for document in view.documents():
        hashed.update(cbor2.dumps([*document]))
    return hashed.hexdigest()


def index_state(directory: Path) -> IndexState:
    """Read a whole index without a writer, in a process of its own; it is not changed.

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
    """Return the position applied, without the file and the offset in it."""
    return applied._replace(position=Position(0, 0, 0, 0))


def _fields(node: Node) -> list[bytes | int | bool | None]:
    return [*node[:4], bool(node.dir_id)]


def main(arguments: Sequence[str]) -> int:
    """Run the program that the module's docstring describes; return its exit status."""
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
