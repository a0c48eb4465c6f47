"""directory.py and file.py: a snapshot is whole, or it is none."""

import errno
import hashlib
import logging
import os
import subprocess
import sys

import cbor2
import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.storage import disk
from kvd.storage.errors import CorruptSnapshot
from kvd.storage.format import frame
from kvd.storage.format.frame import Position
from kvd.storage.format.node import encode_key
from kvd.storage.snapshot import directory
from kvd.storage.snapshot.checkpoint import Checkpoint
from kvd.v2.commands import Set
from tests.support.stores import open_store
from tests.support.stores import write as write_to

HEADER = directory.Header(
    store_uuid=bytes(range(16)),
    cluster_id=2**64 - 1,
    member_id=1,
    index=5117,
    seq=701,
    segment=3,
    offset=83512,
    crc=0xDEADBEEF,
    chain=b"12345678",
    pos=5200,
    term=4,
    time_ns=1_700_000_000_000_000_000,
)
ROWS = [(0, b"a", b"1"), (0, b"b", b""), (1, b"a", b"\x00\xff"), (3, b"z", b"last")]


def write(tmp_path, rows=ROWS, header=HEADER, **options):
    path = tmp_path / "snapshot.tmp"
    path.unlink(missing_ok=True)
    directory.write(path, header, rows, **options)
    return path


def read(path):
    header, rows = directory.read(path)
    return header, list(rows)


@pytest.fixture
def no_sync(monkeypatch):
    """Skip the syncs in tests that read thousands of damaged files."""
    for name in ("sync_file", "drop_cache"):
        monkeypatch.setattr(disk, name, lambda _: None)


def test_a_snapshot_comes_back_as_it_was(tmp_path):
    path = write(tmp_path)
    assert read(path) == (HEADER, ROWS)
    assert directory.verify(path) == HEADER
    assert directory.read_header(path) == HEADER
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_header_says_where_the_log_goes_on():
    assert HEADER.position == Position(3, 83512, 701, 0xDEADBEEF)


def test_a_snapshot_of_nothing_is_one(tmp_path):
    assert read(write(tmp_path, [])) == (HEADER, [])


@given(
    st.dictionaries(st.tuples(st.integers(0, 4), st.binary(min_size=1)), st.binary(), max_size=9)
)
@settings(
    max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_any_rows_come_back(tmp_path, content):
    rows = [(table, key, content[table, key]) for table, key in sorted(content)]
    assert read(write(tmp_path, rows)) == (HEADER, rows)


def test_rows_are_chunked_and_synced_at_a_pace(tmp_path):
    rows = [(0, b"%08d" % i, bytes(1000)) for i in range(20_000)]
    synced = []
    path = write(tmp_path, rows, pace=synced.append)
    assert len(synced) == 4
    assert all(4 * 1024 * 1024 <= count < 6 * 1024 * 1024 for count in synced)
    assert read(path) == (HEADER, rows)


def test_a_row_of_48_mib_comes_back(tmp_path):
    rows = [(0, b"a", b"1"), (0, b"b", bytes(48 * 1024 * 1024)), (0, b"c", b"3")]
    assert read(write(tmp_path, rows)) == (HEADER, rows)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([(0, b"b", b""), (0, b"a", b"")], id="keys"),
        pytest.param([(0, b"a", b""), (0, b"a", b"")], id="a key twice"),
        pytest.param([(1, b"a", b""), (0, b"b", b"")], id="tables"),
    ],
)
def test_rows_out_of_order_are_refused_and_leave_no_file(tmp_path, rows):
    with pytest.raises(ValueError, match="out of order"):
        write(tmp_path, rows)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_written_over(tmp_path):
    path = write(tmp_path)
    with pytest.raises(FileExistsError):
        directory.write(path, HEADER, [])
    assert read(path) == (HEADER, ROWS)


@pytest.mark.parametrize("call", ["write_at", "sync_file"])
def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, call, fail)
    with pytest.raises(OSError, match="full"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


# Damage


@pytest.mark.usefixtures("no_sync")
def test_every_truncation_is_refused(tmp_path):
    path = write(tmp_path)
    for length in reversed(range(path.stat().st_size)):
        if length < 4090 and length % 97:
            continue
        os.truncate(path, length)
        with pytest.raises(CorruptSnapshot):
            read(path)


@pytest.mark.usefixtures("no_sync")
def test_every_flipped_bit_is_refused(tmp_path):
    path = write(tmp_path)
    data = path.read_bytes()
    fd = os.open(path, os.O_RDWR)
    for byte in (*range(80), *range(80, 4096, 61), *range(4096, len(data))):
        for bit in range(8):
            os.pwrite(fd, bytes([data[byte] ^ 1 << bit]), byte)
            with pytest.raises(CorruptSnapshot):
                read(path)
        os.pwrite(fd, data[byte : byte + 1], byte)
    os.close(fd)
    assert read(path) == (HEADER, ROWS)


def test_bytes_behind_the_footer_are_refused(tmp_path):
    path = write(tmp_path)
    for more in (bytes(8), b"x" * 8, bytes(4096)):
        size = path.stat().st_size
        with path.open("ab") as file:
            file.write(more)
        with pytest.raises(CorruptSnapshot):
            read(path)
        os.truncate(path, size)


def test_the_refusal_names_the_file_and_the_place(tmp_path):
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CorruptSnapshot, match=rf"{tmp_path.name}/snapshot.tmp: offset \d+: frame 3"
    ):
        read(path)


def rebuild(path, payloads):
    """Write a snapshot whose frames are all good, whatever is in them."""
    page = path.read_bytes()[:4096]
    salt = frame.decode_segment_header(page, magic=frame.SNAPSHOT_MAGIC).salt
    data, crc = page, 0
    for seq, payload in enumerate(payloads, 1):
        encoded = frame.encode_frame(
            payload, seq=seq, first_index=1, count=0, flags=frame.SNAP, chain=crc, salt=salt
        )
        data, crc = data + encoded, frame.body_crc(encoded)
    path.write_bytes(data)


CHUNK = cbor2.dumps(ROWS)
FOOTER = cbor2.dumps({"rows": {0: 2, 1: 1, 3: 1}, "sha256": hashlib.sha256(CHUNK).digest()})


@pytest.mark.parametrize(
    ("payloads", "problem"),
    [
        ([], "the header is missing"),
        ([b"\xff"], "offset 4096"),
        ([CHUNK], "no header"),
        ([cbor2.dumps([2, *HEADER])], "version 2 is not known"),
        ([directory.encode_header(HEADER)], "footer of index 5117 is missing"),
        ([directory.encode_header(HEADER), CHUNK], "footer of index 5117 is missing"),
        ([directory.encode_header(HEADER), FOOTER], "does not fit the rows"),
        ([directory.encode_header(HEADER), CHUNK, CHUNK, FOOTER], "does not fit the rows"),
        ([directory.encode_header(HEADER), CHUNK, FOOTER, CHUNK], "follows the footer"),
        ([directory.encode_header(HEADER), b"\xff", FOOTER], "offset"),
    ],
)
def test_good_frames_do_not_make_a_snapshot(tmp_path, payloads, problem):
    path = write(tmp_path)
    rebuild(path, [directory.encode_header(HEADER), CHUNK, FOOTER])
    assert read(path) == (HEADER, ROWS)
    rebuild(path, payloads)
    with pytest.raises(CorruptSnapshot, match=problem):
        read(path)


def test_a_header_may_grow_at_its_end():
    assert directory.decode_header(cbor2.dumps([1, *HEADER, b"more"])) == HEADER


# The directory of snapshots


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


# From a copy of the index


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
        seen.append(store._index.env.readers())
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
