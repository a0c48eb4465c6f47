"""The event history is bounded by bytes, too: `--event-history-bytes`."""

from random import Random

import pytest

from kvd.storage.format.event import event_key
from kvd.v2.commands import Set
from tests.storage.test_replicas import follow, frames
from tests.support.stores import NOW_NS, SECOND_NS, digest, dump, live, open_store, write

MIB = 1 << 20


def rows_bytes(store):
    """How long the rows of the history are together, counted anew."""
    store.flush()
    with store.index.env.begin() as txn, txn.cursor(store.index.tables[b"events"]) as cursor:
        return sum(len(row) for _, row in cursor)


def first_row(store):
    store.flush()
    with store.index.env.begin() as txn, txn.cursor(store.index.tables[b"events"]) as cursor:
        return cursor.key() if cursor.first() else None


def test_old_events_go_when_those_behind_them_are_long_enough(tmp_path):
    store = open_store(tmp_path / "data", segment_bytes_max=MIB)
    store.start_term(NOW_NS, 1000, 10_000)
    for i in range(100):
        write(store, Set(b"/a", b"%03d" % i * 300))
        assert rows_bytes(store) <= 10_000
        assert first_row(store) == event_key(max(2, store.applied.oldest_event))
    # Each holds the value twice.
    assert store.applied.index - store.applied.oldest_event + 1 == 10_000 // (2 * 900)
    store.close()


def test_a_batch_that_is_longer_than_the_history_leaves_its_end(tmp_path):
    store = open_store(tmp_path / "data", segment_bytes_max=MIB)
    store.start_term(NOW_NS, 1000, 5000)
    write(store, Set(b"/a", b"v" * 100))
    write(store, *(Set(b"/a", b"v" * 900) for _ in range(50)))
    store.flush()
    assert store.applied.index - store.applied.oldest_event + 1 == 2
    assert first_row(store) == event_key(store.applied.oldest_event)
    assert 0 < rows_bytes(store) <= 5000
    write(store, Set(b"/a", b"v"))
    assert rows_bytes(store) <= 5000
    store.close()


def test_the_last_event_is_kept_however_long_it_is(tmp_path):
    store = open_store(tmp_path / "data", segment_bytes_max=MIB)
    store.start_term(NOW_NS, 1000, 1)
    for value in (b"1" * 1000, b"2" * 100_000, b""):
        write(store, Set(b"/a", value))
        store.flush()
        (event,) = store.view.events(0)
        assert event.change.index == store.applied.index == store.applied.oldest_event
    store.close()


def test_the_limit_is_a_logged_setting_and_stays_over_starts(tmp_path):
    path = tmp_path / "data"
    store = open_store(path)
    store.start_term(NOW_NS, 1000, 5000)
    write(store, *(Set(b"/a", b"v" * 500) for _ in range(20)))
    store.flush()
    held = dump(store)
    assert store.applied.oldest_event > 10
    store.close()
    store = open_store(path, rebuild_index=True)
    assert dump(store) == held
    pos = store.applied.pos
    store.start_term(NOW_NS, 1000, 5000)
    assert store.applied.pos == pos + 1  # the term alone
    store.start_term(NOW_NS, 1000)  # a tool, that has no limit of its own
    assert store.view.history_bytes_max() == 5000
    store.start_term(NOW_NS, 1000, 2000)  # trims at once
    assert rows_bytes(store) <= 2000
    trimmed = dump(store)
    store.close()
    store = open_store(path, rebuild_index=True)
    assert dump(store) == trimmed
    store.close()


def test_an_index_of_a_store_that_had_no_such_limit_is_measured(tmp_path):
    path = tmp_path / "data"
    store = open_store(path)
    store.start_term(NOW_NS, 1000)
    write(store, *(Set(b"/a", b"v" * 500) for _ in range(20)))
    store.close()
    store = open_store(path)
    store.start_term(NOW_NS, 1000, 3000)
    assert 0 < rows_bytes(store) <= 3000
    assert store.applied.index - store.applied.oldest_event + 1 == 2
    store.close()


@pytest.mark.parametrize("seed", range(3))
def test_live_in_replay_and_on_a_replica_the_history_is_the_same(tmp_path, seed):
    leader = open_store(tmp_path / "leader")
    follower = open_store(tmp_path / "follower")
    dice = Random(seed)
    done = 0
    limits = ((1000, 0), (1000, 3000), (20, 3000), (20, 700), (200, 9000), (5, 1), (50, 2500))
    for count, size in limits:
        now_ns = max(NOW_NS, leader.applied.time_ns)
        leader.start_term(now_ns, count, size)
        live(leader, dice, 15)
        leader.flush()
        payloads = frames(leader)
        for payload in payloads[done:]:
            follow(follower, payload)
        done = len(payloads)
        follower.flush()
        assert dump(follower) == dump(leader)
        applied = leader.applied
        assert not size or rows_bytes(leader) <= size or applied.oldest_event == applied.index
    held = digest(leader)
    leader.close()
    follower.close()
    for path in (tmp_path / "leader", tmp_path / "follower"):
        store = open_store(path, rebuild_index=True)
        assert digest(store) == held
        write(store, Set(b"/on", b"v" * 2000), now_ns=store.applied.time_ns + SECOND_NS)
        assert rows_bytes(store) <= 2500
        store.close()


def test_below_the_history_a_watch_is_answered_401(make_server):
    server = make_server("--event-history-bytes", "100000").start()
    client = server.client()
    client.put("/small", "1")
    for i in range(10):
        client.put("/a", str(i) * 10_000)
    cleared = client.get("/small", wait="true", waitIndex=1)
    # What is too long for the history is forgotten when the index is written to, by the tick.
    while cleared.json.get("errorCode") != 401:
        cleared = client.get("/small", wait="true", waitIndex=1)
    assert (cleared.status, cleared.json["errorCode"]) == (400, 401)
    oldest = int(cleared.json["cause"].rpartition("[")[2].partition("/")[0])
    assert cleared.json["index"] - oldest + 1 == 4
    assert client.get("/a", wait="true", waitIndex=oldest).json["node"]["modifiedIndex"] == oldest


@pytest.mark.parametrize(
    ("flags", "count", "size", "most"),
    [
        (("--event-history-bytes", str(MIB), "--wal-segment-bytes", str(MIB)), 300, 100_000, 50),
        pytest.param(
            (), 300, 2_000_000, 1900, marks=[pytest.mark.limits_full, pytest.mark.timeout(300)]
        ),
    ],
    ids=["small", "as it is by default"],
)
def test_disk_use_under_large_values_is_bounded(make_server, flags, count, size, most):
    """Were each event kept, the history alone had 60 MB and 1,200 MB, and as much each snapshot."""
    server = make_server(*flags, "--snapshot-count", "1000000").start()
    client = server.client()
    for i in range(count):
        client.put("/a", chr(97 + i % 26) * size)
    taken = sum(
        file.stat().st_blocks * 512 for file in server.data_dir.rglob("*") if file.is_file()
    )
    assert taken <= most * MIB


def test_a_store_with_a_limit_of_bytes_takes_snapshots(tmp_path):
    store = open_store(tmp_path / "data")
    store.start_term(NOW_NS, 1000, 1 << 20)
    assert write(store, Set(b"/a", b"1"))
    store.flush()
    store.snapshot()
    held = digest(store)
    store.close()
    again = open_store(tmp_path / "data", rebuild_index=True)
    assert digest(again) == held
    again.close()
