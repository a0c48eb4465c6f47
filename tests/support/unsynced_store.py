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
    _write(store, unsynced, txn)


def follow_unsynced(store, unsynced, payload):
    """Apply the payload of another member's batch, visible before it is durable."""
    txn = store.begin()
    batch, _ = store.journal.adopt(txn, payload)
    for record in batch.records:
        txn.apply(record, batch.time_ns)
    _write(store, unsynced, txn)


def _write(store, unsynced, txn):
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


def lose_sectors(path, target, durable, dice):
    """Copy a data directory as a power loss may leave it; the index has all that it was given.

    Of the newest segment, sectors of 512 bytes are lost that hold nothing before `durable`, a
    position in the log.
    """
    shutil.copytree(path, target, symlinks=True)
    newest = segments(target)[-1]
    data = bytearray(newest.read_bytes())
    first = durable.offset if newest.name.startswith(f"{durable.segment:016x}") else 4096
    odds = dice.random()
    for at in range(-(-first // 512) * 512, len(data), 512):
        if dice.random() < odds:
            data[at : at + 512] = bytes(512)
    newest.write_bytes(data)
    return target
