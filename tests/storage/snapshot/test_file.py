"""storage/snapshot/file.py: rows come back, damage is refused."""

import errno
import hashlib
import os

import cbor2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.storage import disk
from kvd.storage.errors import CorruptSnapshot
from kvd.storage.format import frame
from kvd.storage.format.frame import Position
from kvd.storage.snapshot import directory
from tests.support.snapshots import HEADER, ROWS, read, write


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


def test_a_header_of_an_older_version_does_not_say_which_batch_is_the_last():
    older = cbor2.dumps([1, *HEADER[:-1]])
    assert directory.decode_header(older) == HEADER._replace(payload_seq=0)


@pytest.mark.parametrize("fields", [HEADER[:-2], (*HEADER[:-1], b"650")], ids=["few", "no number"])
def test_a_header_that_no_version_has_written_is_refused(fields):
    with pytest.raises(ValueError, match="no header"):
        directory.decode_header(cbor2.dumps([1, *fields]))
