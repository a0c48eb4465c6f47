"""integrity/completeness.py: an index that lacks a row, or has an old one, is noticed."""

from random import Random

import pytest

from kvd.storage.format.applied import HISTORY_BYTES_MAX
from kvd.storage.format.node import CorruptIndex, encode_key
from kvd.storage.format.records import Document, Kind
from kvd.storage.format.sums import APPLIED_KEY
from kvd.storage.index.integrity import completeness
from kvd.storage.index.integrity.completeness import prove_all
from kvd.storage.tools.restore import restore
from kvd.storage.tools.source import reading
from kvd.v2.commands import Delete, Set
from tests.support.stores import (
    NOW_NS,
    digest,
    live,
    log_documents,
    open_store,
    reclaim_all,
    sweep,
    write,
)

HOLDS = ("nodes", "ttl", "events", "garbage", "entries")


@pytest.fixture
def large(monkeypatch):
    """Every store is so large that its nodes are proved once it is open."""
    monkeypatch.setattr(completeness, "_ROWS_AT_START", 0)


@pytest.fixture
def path(tmp_path):
    """A stopped store with something in every table."""
    path = tmp_path / "data"
    store = open_store(path)
    store.start_term(NOW_NS, 40)
    write(store, *(Set(b"/d/%d" % i, b"v" * 50, ttl_s=50) for i in range(200)))
    write(store, *(Set(b"/e/%d" % i, b"v") for i in range(20)), Delete(b"/e", recursive=True))
    log_documents(
        store, Document(Kind.AUTH, "user", "al", b"{}"), Document(Kind.AUTH, "role", "jobs", b"{}")
    )
    store.close()
    return path


def edit(path, change):
    """Change the index behind the back of its sums; it stands there as after a clean stop."""
    store = open_store(path)
    with store.index.env.begin(write=True) as txn:
        change(txn, store.index.tables)
    store.close()


def reopen(path):
    """Open a store and prove it to the end; return what it holds and where from."""
    store = open_store(path)
    try:
        while store.proof.rows_left is not None:
            store.proof.go_on(0)
        return digest(store), store.recovery.source
    finally:
        store.close()


def first_row(table):
    def remove(txn, tables):
        with txn.cursor(db=tables[table.encode()]) as cursor:
            assert cursor.first()
            assert cursor.delete()

    return remove


def last_row(table):
    def remove(txn, tables):
        with txn.cursor(db=tables[table.encode()]) as cursor:
            assert cursor.last()
            assert cursor.delete()

    return remove


def test_a_whole_index_is_used(path):
    held, source = reopen(path)
    assert source == "clean stop"
    assert reopen(path) == (held, "clean stop")


@pytest.mark.parametrize("table", HOLDS)
@pytest.mark.parametrize("removal", [first_row, last_row])
def test_a_small_index_that_lacks_a_row_is_rebuilt_by_the_start(path, table, removal, caplog):
    held, _ = reopen(path)
    edit(path, removal(table))
    assert reopen(path) == (held, "log")
    assert "will be rebuilt: the " in caplog.text


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("source", ["log", "snapshot", "restored"])
def test_of_a_large_index_the_limit_of_the_history_is_proved_by_the_start(path, tmp_path, source):
    store = open_store(path)
    store.start_term(NOW_NS, 40, 30_000)
    store.start_term(NOW_NS, 40, 20_000)
    if source == "snapshot":
        store.flush()
        store.snapshot()
    store.close()
    if source == "restored":
        with reading(path) as whole:
            restore(whole, tmp_path / "restored")
        path = tmp_path / "restored"
    open_store(path, rebuild_index=True).close()
    held, used = reopen(path)
    assert used == "clean stop"

    def remove(txn, tables):
        assert txn.delete(HISTORY_BYTES_MAX.encode(), db=tables[b"meta"])

    edit(path, remove)
    found, used = reopen(path)
    assert (found, used != "clean stop") == (held, True)
    store = open_store(path)
    assert store.view.history_bytes_max() == 20_000
    store.close()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("table", ["events", "garbage", "entries"])
def test_of_a_large_index_users_and_history_are_proved_by_the_start(path, table):
    held, _ = reopen(path)
    edit(path, first_row(table))
    assert reopen(path) == (held, "log")


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("table", ["nodes", "ttl"])
@pytest.mark.parametrize("removal", [first_row, last_row])
def test_of_a_large_index_a_missing_node_or_expiration_is_found_later(path, table, removal):
    edit(path, removal(table))
    with pytest.raises(CorruptIndex, match=rf"the table {table} has \d+ rows, expected \d+"):
        reopen(path)


@pytest.mark.usefixtures("large")
def test_an_older_row_is_found(path):
    store = open_store(path)
    with store.index.env.begin() as txn:
        key = encode_key(2, b"7")
        older = txn.get(key, db=store.index.tables[b"nodes"])
    write(store, Set(b"/d/7", b"new", ttl_s=50))
    store.close()

    def put_back(txn, tables):
        txn.put(key, older, db=tables[b"nodes"])

    edit(path, put_back)
    with pytest.raises(CorruptIndex, match=r"the table nodes has (\d+) rows, expected \1, but oth"):
        reopen(path)


@pytest.mark.parametrize("seed", range(3))
def test_the_sums_are_those_of_the_rows_whatever_happens(tmp_path, seed):
    path, dice = tmp_path / "data", Random(seed)
    for life in range(3):
        store = open_store(path, rebuild_index=life == 2)
        store.start_term(store.applied.time_ns or NOW_NS, 30)
        live(store, dice, 40)
        prove_all(store.index.env, store.index.tables)
        sweep(store, store.applied.time_ns + 60_000_000_000)
        reclaim_all(store)
        prove_all(store.index.env, store.index.tables)
        store.flush()
        store.snapshot()
        live(store, dice, 10)
        prove_all(store.index.env, store.index.tables)
        store.close()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("seed", range(4))
def test_a_scan_holds_while_others_write(tmp_path, seed):
    path, dice = tmp_path / "data", Random(seed)
    store = open_store(path)
    write(store, *(Set(b"/%d/%d" % (i % 7, i), b"v", ttl_s=5 + i) for i in range(300)))
    store.close()
    store = open_store(path)
    slices = 0
    while store.proof.rows_left is not None:
        live(store, dice, dice.randrange(3))
        sweep(store, store.applied.time_ns + dice.randrange(10) * 1_000_000_000)
        reclaim_all(store)
        store.proof.go_on(0)
        slices += 1
    assert slices > 20
    prove_all(store.index.env, store.index.tables)
    store.close()


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("seed", range(4))
def test_a_scan_finds_what_is_missing_while_others_write(path, seed):
    dice = Random(seed)

    def remove(txn, tables):
        txn.delete(encode_key(2, b"%d" % dice.randrange(200)), db=tables[b"nodes"])

    edit(path, remove)
    store = open_store(path)
    with pytest.raises(CorruptIndex, match="the table nodes has"):
        prove_under_writes(store, dice)
    store.close()


def prove_under_writes(store, dice):
    while store.proof.rows_left is not None:
        write(store, Set(b"/d/x%d" % dice.randrange(99), b"v"), now_ns=store.applied.time_ns)
        store.proof.go_on(0)


def test_an_index_of_an_older_version_is_rebuilt_once(path, caplog):
    held, _ = reopen(path)

    def forget_sums(txn, tables):
        applied = open_at(txn, tables)
        txn.put(APPLIED_KEY, applied.encode(), db=tables[b"meta"])

    edit(path, forget_sums)
    assert reopen(path) == (held, "log")
    assert "of an older version" in caplog.text
    assert reopen(path) == (held, "clean stop")


def open_at(txn, tables):
    return completeness.Applied.decode(txn.get(APPLIED_KEY, db=tables[b"meta"]))
