"""directory.py and file.py: a snapshot is whole, or it is none."""

import logging
import os
import subprocess
import sys

import lmdb
import pytest

from kvd.storage import disk
from kvd.storage.errors import CorruptSnapshot
from kvd.storage.format.node import encode_key
from kvd.storage.snapshot import directory
from kvd.storage.snapshot.checkpoint import Checkpoint
from kvd.v2.commands import Set
from tests.support.snapshots import HEADER, read, write
from tests.support.stores import open_store
from tests.support.stores import write as write_to


def install(tmp_path, index, seq):
    header = HEADER._replace(index=index, seq=seq)
    return directory.install(write(tmp_path, header=header), tmp_path, header)


def test_the_newest_two_are_kept(tmp_path):
    paths = [install(tmp_path, index, index // 2) for index in (9, 300, 70_000, 16)]
    (tmp_path / "other.snap").touch()
    assert paths[0].name == "0000000000000009-0000000000000004.snap"
    newest = [paths[2], paths[1], paths[3], paths[0]]
    assert directory.available(tmp_path) == newest
    assert [header.index for header in directory.prune(tmp_path, keep=2)] == [70_000, 300]
    assert directory.available(tmp_path) == newest[:2]
    assert [header.index for header in directory.prune(tmp_path, keep=1)] == [70_000]


def test_nothing_is_deleted_while_one_that_is_kept_is_damaged(tmp_path):
    for index in (1, 2, 3):
        install(tmp_path, index, index)
    os.truncate(directory.available(tmp_path)[1], 100)
    with pytest.raises(CorruptSnapshot):
        directory.prune(tmp_path, keep=2)
    assert len(directory.available(tmp_path)) == 3


def test_what_is_set_aside_is_not_available_but_there(tmp_path, caplog):
    path = install(tmp_path, 1, 1)
    directory.set_aside(path)
    assert directory.available(tmp_path) == []
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name + ".broken"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert path.name in record.getMessage()


def copy_of_index(tmp_path, tables):
    env = lmdb.open(str(tmp_path / "index"), max_dbs=8, map_size=2**40)
    for name, rows in tables.items():
        database = env.open_db(name)
        with env.begin(write=True, db=database) as txn:
            for key, value in rows:
                txn.put(key, value)
    scratch = tmp_path / "scratch.tmp"
    with scratch.open("wb") as file:
        env.copyfd(file.fileno(), compact=True)
    env.close()
    return scratch


def test_a_copy_of_the_index_becomes_a_snapshot(tmp_path):
    tables = {
        b"second": [(b"b", b"2"), (b"a", bytes(100_000))],
        b"first": [(b"%d" % i, b"v") for i in range(1000)],
        b"empty": [],
        b"ignored": [(b"x", b"y")],
    }
    scratch = copy_of_index(tmp_path, tables)
    target = tmp_path / "target.tmp"
    directory.convert(scratch, target, (b"first", b"empty", b"second"), HEADER)
    expected = [(0, key, value) for key, value in sorted(tables[b"first"])]
    expected += [(2, key, value) for key, value in sorted(tables[b"second"])]
    assert read(target) == (HEADER, expected)


def test_a_copy_that_lacks_a_table_gives_no_snapshot(tmp_path):
    scratch = copy_of_index(tmp_path, {b"first": [(b"a", b"b")]})
    target = tmp_path / "target.tmp"
    with pytest.raises(lmdb.NotFoundError):
        directory.convert(scratch, target, (b"first", b"second"), HEADER)
    assert not target.exists()


def test_a_snapshot_that_is_not_what_was_written_is_thrown_away(tmp_path, monkeypatch):
    scratch = copy_of_index(tmp_path, {b"first": [(b"a", b"b")]})
    real = disk.write_at

    def spoil(fd, data, offset):
        real(fd, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], offset)

    monkeypatch.setattr(disk, "write_at", spoil)
    target = tmp_path / "target.tmp"
    with pytest.raises(CorruptSnapshot):
        directory.convert(scratch, target, (b"first",), HEADER)
    assert not target.exists()


@pytest.fixture
def stopped_index(tmp_path):
    """The file of an index that nobody writes to, and nothing of it in a snapshot yet."""
    store = open_store(tmp_path / "data")
    write_to(store, *(Set(b"/a/%d" % i, b"v" * 100, ttl_s=9) for i in range(50)))
    store.close()
    return tmp_path / "data" / "index" / "data.mdb"


def run_worker(scratch, target):
    return subprocess.run(
        [
            *(sys.executable, "-m", "kvd.storage.snapshot.directory"),
            *(str(scratch), str(target), directory.encode_header(HEADER).hex()),
        ],
        check=False,
        capture_output=True,
        text=True,
    )


def test_the_worker_is_a_program(tmp_path, stopped_index):
    target = tmp_path / "target.tmp"
    assert run_worker(stopped_index, target).returncode == 0
    header, rows = read(target)
    assert header == HEADER
    assert len([key for table, key, _ in rows if table == 0]) == 51


def test_an_index_that_lacks_rows_gives_no_snapshot(tmp_path, stopped_index):
    target = tmp_path / "target.tmp"
    with lmdb.open(str(stopped_index), subdir=False, max_dbs=9) as env:
        nodes = env.open_db(b"nodes", create=False)
        with env.begin(write=True) as txn:
            assert txn.delete(encode_key(2, b"7"), db=nodes)
    ended = run_worker(stopped_index, target)
    assert ended.returncode == 75
    assert "the table nodes has 50 rows, expected 51" in ended.stderr
    assert not target.exists()


def test_nothing_of_the_index_is_read_while_a_snapshot_is_written(tmp_path, monkeypatch):
    store = open_store(tmp_path / "data")
    write_to(store, Set(b"/a", b"1"))
    convert = Checkpoint._convert
    seen = []

    def look(checkpoint, *args):
        seen.append(store.index.env.readers())
        # Nobody reads an older state either, so what is freed from now on can be used again.
        write_to(store, Set(b"/a", b"2"))
        convert(checkpoint, *args)

    monkeypatch.setattr(Checkpoint, "_convert", look)
    store.flush()
    store.snapshot()
    (readers,) = seen
    transactions = [line.split()[2] for line in readers.splitlines()[1:]]
    assert set(transactions) <= {"-"}
    store.close()
