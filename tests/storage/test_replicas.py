"""A store's log, applied to another store, makes the same state: the basis of replicas."""

from random import Random

import pytest

from kvd.storage.format.payload import decode_payload, next_chain
from tests.support.stores import NOW_NS, SEGMENT, digest, dump, live, open_store, reclaim_all


def frames(store):
    """Every payload that a store's log holds, from a second reader of its files."""
    wal = type(store.wal).open(
        store.directory.wal,
        store.directory.quarantine,
        store_uuid=store.identity.store_uuid,
        segment_bytes_max=SEGMENT,
    )
    return [frame.payload for frame in wal.scan()]


def follow(store, payload):
    """Do what a follower would do with one payload of its leader."""
    batch = decode_payload(payload)
    txn = store.begin()
    for record in batch.records:
        txn.apply(record, batch.time_ns)
    assert txn.pos == batch.pos
    txn.payload, txn.records = payload, len(batch.records)
    txn.seq, txn.time_ns = batch.seq, batch.time_ns
    txn.chain = next_chain(batch.prev_chain, payload)
    store.state.merge(txn, store.journal.append(txn))


@pytest.mark.parametrize("seed", range(4))
def test_a_second_store_that_performs_the_log_of_the_first_holds_the_same(tmp_path, seed):
    leader = open_store(tmp_path / "leader")
    follower = open_store(tmp_path / "follower")
    dice = Random(seed)
    done = 0
    for limit in (1000, 30, 30, 50):
        leader.start_term(NOW_NS, limit)
        live(leader, dice, 40)
        payloads = frames(leader)
        for payload in payloads[done:]:
            follow(follower, payload)
        done = len(payloads)
        # When each of them frees what was removed is its own affair.
        if limit == 50:
            reclaim_all(follower)
        assert dump(follower) == dump(leader)
    assert follower.identity != leader.identity
    held = digest(leader)
    leader.close()
    follower.close()
    follower = open_store(tmp_path / "follower", rebuild_index=True)
    assert digest(follower) == held
    follower.close()
