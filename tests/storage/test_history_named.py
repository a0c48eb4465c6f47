"""Large values are stored in the event history once: a later event names the one that set them."""

from random import Random

import pytest

from kvd.storage.format.event import MARK, decode_event, event_key, named_by, whole_bytes
from kvd.storage.format.node import CorruptIndex
from kvd.storage.index.history import NAMED_BYTES_MIN
from kvd.storage.index.integrity.completeness import prove_all
from kvd.storage.tools.digest import digest as told_digest
from kvd.storage.tools.source import reading
from kvd.storage.tools.verify import Verdict, verify
from kvd.v2.commands import CompareAndSwap, Delete, Set, Update
from tests.support.stores import NOW_NS, SECOND_NS, digest, dump, history, open_store, sweep, write

LARGE = NAMED_BYTES_MIN
SEGMENT = 1 << 20


def rows(store):
    """The rows of the history, by index."""
    found = all_rows(store)
    assert found.pop(0, MARK) == MARK
    return found


def all_rows(store):
    """The same, and the mark where it stands."""
    store.flush()
    with store.index.env.begin() as txn, txn.cursor(store.index.tables[b"events"]) as cursor:
        return {int.from_bytes(key, "big"): bytes(row) for key, row in cursor}


def received(store):
    """What the history tells: the index of each event, and the value before."""
    return [(event.change.index, event.prev and event.prev.value) for event in store.view.events(0)]


def large(number):
    return b"%d" % (number % 10) * LARGE


def opened(path, **limits):
    store = open_store(path, segment_bytes_max=SEGMENT)
    store.start_term(NOW_NS, **{"history_limit": 1000} | limits)
    return store


def test_a_large_value_that_was_replaced_stands_in_the_history_once(tmp_path):
    store = opened(tmp_path / "data")
    for i in range(20):
        write(store, Set(b"/a", large(i)))
        if i % 3 == 0:
            store.flush()
    held = rows(store)
    assert {index: named_by(row) for index, row in held.items()} == {
        index: index - 1 if index > 2 else 0 for index in range(2, 22)
    }
    assert sum(map(len, held.values())) < 20 * (LARGE + 200)
    assert received(store) == [(2 + i, large(i - 1) if i else None) for i in range(20)]
    store.close()


@pytest.mark.parametrize("flush_each", [1, 3, 1000])
@pytest.mark.parametrize("keys", [1, 3, 9, 10, 11, 30])
def test_what_is_named_is_kept_as_long_as_it_is_and_no_longer(tmp_path, keys, flush_each):
    store = opened(tmp_path / "data", history_limit=10)
    values = {}
    expected = []
    for i in range(100):
        key = b"/%d" % (i % keys)
        value = large(i) if i < 60 else b"small"
        write(store, Set(key, value))
        expected.append((2 + i, values.get(key)))
        values[key] = value
        if i % flush_each == 0:
            held = rows(store)
            first = store.applied.oldest_event
            named = {named_by(row) for index, row in held.items() if index >= first} - {0}
            assert {index for index in held if index < first} == {i for i in named if i < first}
        assert received(store) == expected[-10:]
    assert min(rows(store)) == store.applied.oldest_event
    prove_all(store.index.env, store.index.tables)
    store.close()


COMMANDS = (
    lambda dice, key: Set(key, large(dice.randrange(10)), ttl_s=dice.choice((None, 5, 50))),
    lambda dice, key: Set(key, b"small"),
    lambda dice, key: Update(key, large(1)),
    lambda dice, key: Update(key, b"", 50, refresh=True),
    lambda dice, key: CompareAndSwap(key, large(2), large(1), 0),
    lambda dice, key: Delete(key),
    lambda dice, key: Set(b"/dir", b"", dir=True, ttl_s=500),
    lambda dice, key: Delete(b"/dir", recursive=True),
)


@pytest.mark.parametrize("seed", range(6))
def test_history_is_the_same_whether_events_name_others_or_not(tmp_path, monkeypatch, seed):
    def live(path):
        dice, now_ns = Random(seed), NOW_NS
        store = opened(path)
        for count, size in ((30, 0), (7, 0), (50, 60_000), (50, 20_000), (100, 0), (3, 0)):
            store.start_term(now_ns, count, size)
            for _ in range(dice.randrange(10, 30)):
                chosen = dice.choices(COMMANDS, k=dice.randrange(1, 5))
                names = [b"/a", b"/b", b"/dir/c", b"/dir/" + b"d" * 600]
                now_ns += SECOND_NS
                sweep(store, now_ns)
                write(store, *(make(dice, dice.choice(names)) for make in chosen), now_ns=now_ns)
                if dice.random() < 0.3:
                    store.flush()
            store.flush()
            yield dump(store) | {"applied": store.applied.oldest_event}, shown_sizes(store)
            store.snapshot()
        prove_all(store.index.env, store.index.tables)
        yield told_digest(store.view)
        store.close()

    def shown_sizes(store):
        first = store.applied.oldest_event
        return [whole_bytes(row) for index, row in rows(store).items() if index >= first]

    named = list(live(tmp_path / "named"))
    monkeypatch.setattr("kvd.storage.index.history.NAMED_BYTES_MIN", 1 << 30)
    assert list(live(tmp_path / "held")) == named
    # And so it is when it is rebuilt, from a snapshot or from the log.
    monkeypatch.undo()
    path = tmp_path / "named"
    for _ in range(3):
        store = open_store(path, segment_bytes_max=SEGMENT, rebuild_index=True)
        assert told_digest(store.view) == named[-1]
        store.close()
        for snapshot in sorted((path / "snap").iterdir())[-1:]:
            snapshot.unlink()


def test_a_snapshot_names_nothing_and_keeps_nothing_for_that(tmp_path):
    path = tmp_path / "data"
    store = opened(path, history_limit=10)
    for i in range(40):
        write(store, Set(b"/%d" % (i % 10), large(i)))
        store.flush()
    held = history(store.view)
    assert min(rows(store)) < store.applied.oldest_event
    store.snapshot()
    store.close()
    store = open_store(path, rebuild_index=True)
    assert list(rows(store)) == list(range(store.applied.oldest_event, store.applied.index + 1))
    assert not any(map(named_by, rows(store).values()))
    assert history(store.view) == held
    store.close()


def test_readers_that_know_no_such_rows_find_one_too_many(tmp_path):
    path = tmp_path / "data"
    store = opened(path)
    write(store, Set(b"/a", b"small"))
    write(store, Set(b"/a", large(1)))
    assert 0 not in all_rows(store)
    write(store, Set(b"/a", large(2)))
    assert 0 in all_rows(store)
    held = digest(store)
    store.close()
    store = open_store(path)
    assert (store.recovery.source, digest(store)) == ("clean stop", held)
    store.snapshot()
    store.close()
    # No snapshot has them.
    store = open_store(path, rebuild_index=True)
    assert digest(store) == held
    assert list(all_rows(store)) == [2, 3, 4]
    store.close()


@pytest.mark.parametrize("harm", ["named", "kept for nothing"])
def test_a_row_that_is_missing_or_too_many_is_noticed_by_the_start(tmp_path, caplog, harm):
    path = tmp_path / "data"
    store = opened(path, history_limit=10)
    ever = {}
    for i in range(40):
        write(store, Set(b"/%d" % (i % 10), large(i)))
        ever |= rows(store)
    held = digest(store)
    first = min(rows(store))
    assert first < store.applied.oldest_event
    with store.index.env.begin(write=True) as txn:
        table = store.index.tables[b"events"]
        if harm == "named":
            txn.delete(event_key(first), db=table)
        else:
            txn.put(event_key(first - 1), ever[first - 1], db=table)
    store.close()
    with reading(path) as source:
        (tmp_path / "scratch").mkdir()
        found = [
            f.part for f in verify(source, tmp_path / "scratch") if f.verdict is Verdict.DAMAGED
        ]
    assert "index" in " ".join(found)
    store = open_store(path)
    assert "rows that its events name, expected 10" in caplog.text
    assert digest(store) == held
    store.close()


def test_damage_to_what_is_named_is_refused_not_served(tmp_path):
    store = opened(tmp_path / "data")
    for i in range(3):
        write(store, Set(b"/a", large(i)))
    kept = rows(store)
    row = bytearray(kept[3])
    row[-1] ^= 1
    with store.index.env.begin(write=True) as txn:
        txn.put(event_key(3), bytes(row), db=store.index.tables[b"events"])
    find = {**kept, 3: bytes(row)}.get
    with pytest.raises(CorruptIndex):
        decode_event(event_key(4), kept[4], find)
    with pytest.raises(CorruptIndex):
        list(store.view.events(4))
    store.close()
