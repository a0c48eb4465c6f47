"""Batches of a store that are written without a sync, as a replica does, and a power loss."""

import shutil

from kvd.storage.format.payload import next_chain
from kvd.storage.wal.unsynced import Unsynced
from tests.support.lives import segments
from tests.support.stores import NOW_NS, run


def log_unsynced(store):
    """From here on."""
    unsynced = Unsynced(store.wal)
    store.state.writer.durable_frame = lambda: unsynced.durable
    return unsynced


def write_unsynced(store, unsynced, *commands):
    """Run commands as one batch, visible before it is durable."""
    txn = store.begin()
    _, records = run(txn, commands, NOW_NS)
    store.journal.encode(txn, records, NOW_NS)
    txn.chain = next_chain(txn.base.chain, txn.payload)
    if not unsynced.write(txn.payload, txn.base.index + 1, txn.records):
        unsynced.append(txn.payload, txn.base.index + 1, txn.records)
    store.state.merge(txn, store.wal.position)


def lose_power(path, target, log_bytes):
    """Copy a data directory as it is found when the newest segment lost all behind so many bytes.

    The index was written out before that; nothing vouches for it.
    """
    shutil.copytree(path, target)
    newest = segments(target)[-1]
    size = newest.stat().st_size
    newest.write_bytes(newest.read_bytes()[:log_bytes].ljust(size, b"\0"))
    (target / "index" / "RUNNING").unlink()
    return target
