"""Snapshots of rows, written and read back."""

from kvd.storage.snapshot import directory

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
    payload_seq=650,
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
