"""Terms of starts, and frames that do not fit the history before them."""

import errno
import os

import pytest

import kvd.storage.journal
import kvd.storage.recovery
from kvd.storage import disk
from kvd.storage.errors import CorruptLog, LogFull, LogTooNew
from kvd.storage.format.payload import VERSION, VERSION_SHA256, encode_payload
from kvd.storage.format.records import LoggedSetting, Term, encode_record
from kvd.v2.commands import Set
from tests.support.lives import reopened, segments
from tests.support.log_texts import log_text
from tests.support.stores import NOW_NS, digest, dump, open_store, write


def test_each_start_has_a_term_of_its_own(tmp_path):
    path = tmp_path / "data"
    for start in range(1, 4):
        store = open_store(path)
        store.start_term(NOW_NS, 1000)
        assert (store.applied.term, store.applied.index, store.applied.pos) == (start, 1, start)
        store.close()


def test_the_length_of_the_history_is_logged_when_it_changes(tmp_path):
    path = tmp_path / "data"
    for start, limit in enumerate((1000, 3, 3, 5), 1):
        store = open_store(path)
        store.start_term(NOW_NS, limit)
        write(store, *(Set(b"/a", b"") for _ in range(4)))
        assert store.applied.history_limit == limit
        assert len(list(store.view.events(0))) == min(limit, 4 * start)
        held = digest(store)
        store.close()
    assert reopened(path, rebuild_index=True)[0] == held


def test_a_start_on_a_full_disk_keeps_the_old_term(tmp_path, monkeypatch, caplog):
    path = tmp_path / "data"
    store = open_store(path)
    store.start_term(NOW_NS, 1000)
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    store.close()
    store = open_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", refuse_to_write)
        store.start_term(NOW_NS, 7)
        assert store.applied.term == 1
        assert digest(store) == held
        with pytest.raises(LogFull):
            write(store, Set(b"/a", b"2"))
    assert log_text("could not be logged") in caplog.text


def refuse_to_write(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_batch_that_was_not_written_takes_no_index(tmp_path, monkeypatch):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    held = digest(store)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", refuse_to_write)
        txn = store.begin()
        store.journal.encode(txn, [encode_record(Term(9))], NOW_NS)
        with pytest.raises(LogFull):
            store.journal.append(txn)
        txn.end()
    assert digest(store) == held
    (event,) = write(store, Set(b"/a", b"2"))
    assert event.change.index == 3
    held = digest(store)
    store.close()
    assert reopened(tmp_path / "data", rebuild_index=True)[0] == held


def foreign_payload(store, **changes):
    fields = {
        "term": 1,
        "seq": store.applied.seq + 1,
        "prev_chain": store.applied.chain,
        "pos": store.applied.pos + 1,
        "first_index": store.applied.index + 1,
        "time_ns": NOW_NS,
        "writer": 1,
        "records": [encode_record(LoggedSetting("history_limit", 5))],
    }
    return encode_payload(**fields | changes)


@pytest.mark.parametrize(
    "changes",
    [{"prev_chain": b"x" * 8}, {"seq": 2}, {"seq": 4}, {"records": [b"\x82\x11\x01"]}],
    ids=["another chain", "a batch again", "a batch left out", "an unknown record"],
)
@pytest.mark.parametrize("rebuild", [False, True])
def test_a_frame_of_another_history_is_refused(tmp_path, changes, rebuild):
    path = tmp_path / "data"
    store = open_store(path)
    for i in range(2):
        write(store, Set(b"/a", b"%d" % i))
    payload = foreign_payload(store, **changes)
    store.wal.append(payload, first_index=4, count=1)
    store.close()
    for _ in range(2):
        with pytest.raises(CorruptLog, match="frame 3"):
            open_store(path, rebuild_index=rebuild)


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_frame_of_a_later_version_is_refused_and_stays(tmp_path, rebuild):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    payload = bytearray(foreign_payload(store))
    payload[1] = VERSION_SHA256 + 1
    store.wal.append(bytes(payload), first_index=3, count=1)
    store.close()
    held = [file.read_bytes() for file in segments(path)]
    with pytest.raises(
        LogTooNew, match=r"frame 2 .* version 3, .*a later version of kvd"
    ) as refused:
        open_store(path, rebuild_index=rebuild)
    assert refused.value.exit_status == 78
    assert [file.read_bytes() for file in segments(path)] == held


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_log_may_be_chained_by_either_hash_in_any_order(tmp_path, monkeypatch, rebuild):
    path = tmp_path / "data"
    versions = []
    for has_sha256 in (False, True, False, True):
        monkeypatch.setattr(kvd.storage.journal, "has_sha256", lambda has=has_sha256: has)
        store = open_store(path, rebuild_index=rebuild)
        for length in (10, 5000, 20_000, 10):
            commands = [Set(b"/%d" % i, b"v" * length) for i in range(3)]
            write(store, *commands)
        versions += [frame.payload[1] for frame in store.wal.scan()][-4:]
        held = dump(store)
        store.close()
    large = [VERSION, VERSION_SHA256, VERSION_SHA256, VERSION]
    assert versions == ([VERSION] * 4 + large) * 2
    # Whoever reads it needs nothing of the processor.
    monkeypatch.setattr(kvd.storage.journal, "has_sha256", lambda: False)
    store = open_store(path, rebuild_index=rebuild)
    assert dump(store) == held
    store.close()


def test_a_frame_of_the_same_history_is_not(tmp_path):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    store.wal.append(foreign_payload(store), first_index=3, count=1)
    store.close()
    store = open_store(path)
    assert store.recovery.records == 1
    assert store.applied.history_limit == 5
    store.close()
