"""The edges: any bytes for a segment, the largest request, signals without end, a second mount."""

import ctypes
import os
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvd.storage.errors import CorruptLog
from kvd.storage.format import frame
from kvd.storage.format.frame import PAGE_SIZE, SegmentHeader
from kvd.storage.format.names import segment_name
from kvd.storage.wal.wal import Wal
from kvd.testing.crash import Clients, Ledger
from tests.crash.lab.killing import FLAGS, start
from tests.crash.lab.powerloss import fast_directory
from tests.crash.lab.process import Kvd
from tests.support.server import run_kvd

# Any bytes as a segment

UUID = bytes(range(16))
SALT = 0x5EED
SEGMENT_BYTES = 1 << 16
MEMORY_MAX = 64 << 20
HEADER = SegmentHeader(UUID, 1, 1, 2, 0, SALT, 0)


def good_frames(number: int) -> list[bytes]:
    """What a log would hold."""
    frames: list[bytes] = []
    chain = 0
    for seq in range(1, number + 1):
        encoded = frame.encode_frame(
            b"payload" * seq, seq=seq, first_index=seq + 1, count=1, flags=0, chain=chain, salt=SALT
        )
        chain = frame.body_crc(encoded)
        frames.append(encoded)
    return frames


GOOD = good_frames(6)
HEADS = st.builds(
    lambda length, seq, count, chain: (
        frame.encode_frame(
            b"", seq=seq, first_index=2, count=count, flags=0, chain=chain, salt=SALT
        )[:4]
        + length.to_bytes(4, "little")
        + bytes(24)
    ),
    *(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**24 - 1)),
    st.integers(0, 2**32 - 1),
)


def honest_head(length: int, seq: int) -> bytes:
    """A header whose checksum holds, and whose length may be anything."""
    head = frame.encode_frame(b"", seq=seq, first_index=2, count=1, flags=0, chain=0, salt=SALT)[
        :32
    ]
    head = head[:4] + length.to_bytes(4, "little") + head[8:]
    return head + frame.crc32(head, SALT).to_bytes(4, "little") + bytes(4)


PIECES = st.one_of(
    st.binary(max_size=200),
    st.integers(1, 400).map(bytes),
    st.sampled_from(GOOD),
    st.integers(0, len(GOOD)).map(lambda number: b"".join(GOOD[:number])),
    st.builds(lambda piece, end: piece[:end], st.sampled_from(GOOD), st.integers(0, 100)),
    st.builds(honest_head, st.integers(0, 2**32 - 1), st.integers(0, 10)),
    HEADS,
)
PAGES = st.one_of(
    st.just(frame.encode_segment_header(HEADER, magic=frame.WAL_MAGIC)),
    st.just(frame.encode_segment_header(HEADER, magic=frame.WAL_MAGIC)),
    st.binary(max_size=PAGE_SIZE),
)
SEGMENTS = st.builds(lambda page, pieces: page + b"".join(pieces), PAGES, st.lists(PIECES))


def read_any(directory: Path, content: bytes) -> None:
    """Read a log of one segment: it is whole, has a torn tail, or is refused; nothing else."""
    path = directory / "wal" / segment_name(1, 1)
    path.write_bytes(content)
    tracemalloc.reset_peak()
    # Hypothesis remembers its examples: after some thousands it holds more than is allowed here.
    held = tracemalloc.get_traced_memory()[0]
    received = path.name
    try:
        wal = Wal.open(
            directory / "wal",
            directory / "quarantine",
            store_uuid=UUID,
            segment_bytes_max=SEGMENT_BYTES,
        )
        seqs = [found.seq for found in wal.scan()]
        assert seqs == list(range(1, len(seqs) + 1))
    except CorruptLog as refusal:
        received = str(refusal)
    assert path.name in received
    assert tracemalloc.get_traced_memory()[1] - held < MEMORY_MAX
    assert path.read_bytes() == content


@pytest.fixture
def log_directory(tmp_path_factory):
    base = Path(fast_directory() or tmp_path_factory.mktemp("log"))
    directory = base / f"kvd-any-bytes-{os.getpid()}"
    for name in ("wal", "quarantine"):
        (directory / name).mkdir(parents=True)
    tracemalloc.start()
    try:
        yield directory
    finally:
        tracemalloc.stop()
        for path in [*directory.glob("wal/*")]:
            path.unlink()
        for name in ("wal", "quarantine", "."):
            (directory / name).rmdir()


SETTINGS = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@settings(max_examples=300, **SETTINGS)
@given(content=SEGMENTS)
def test_any_bytes_are_a_segment_or_refused(log_directory, content):
    read_any(log_directory, content)


@pytest.mark.durability_full
@pytest.mark.timeout(0)
@settings(max_examples=100_000, **SETTINGS)
@given(content=SEGMENTS)
def test_any_bytes_are_a_segment_or_refused_100_000_times(log_directory, content):
    read_any(log_directory, content)


# The largest request

FORM_BYTES_MAX = 10 << 20


def log_bytes(data: Path) -> bytes:
    return b"".join(path.read_bytes().rstrip(b"\0") for path in sorted(data.glob("wal/*.wal")))


def test_the_largest_request_survives_kill_9_and_one_byte_more_never_reaches_the_log(make_server):
    server = make_server().start()
    client = server.client()
    assert client.put("/before", "1").status == 201
    before = log_bytes(server.data_dir)
    form = "value=" + "v" * (FORM_BYTES_MAX - 6)
    refused = client.request("PUT", "/v2/keys/largest", form + "v")
    assert (refused.status, refused.json["errorCode"]) == (400, 210)
    assert log_bytes(server.data_dir)[: len(before)] == before
    assert len(log_bytes(server.data_dir)) < len(before) + 4096  # a heartbeat at most
    written = client.request("PUT", "/v2/keys/largest", form)
    assert written.status == 201
    # Twice: what it replaces is part of the event.
    written = client.request("PUT", "/v2/keys/largest", form)
    assert written.status == 200
    for flags in ((), ("--rebuild-index",)):
        server.kill()
        server.start(*flags)
        found = server.client().get("/largest")
        assert found.index == written.index
        assert found.json["node"]["value"] == form[6:]
        assert found.json["node"]["modifiedIndex"] == written.index


# Signals


def test_signals_at_1_khz_interrupt_writes_and_lose_none(tmp_path):
    clients, ledger = Clients(8, 1), Ledger()
    with Kvd(tmp_path / "data", *FLAGS, mutant="interrupted") as kvd:
        start(kvd)
        clients.start(kvd.url, 60)
        ops = clients.join()
        assert all(0 < op.status < 500 for op in ops)
        kvd.kill()
        start(kvd)
        ledger.check(ops, kvd.url)
        assert kvd.terminate() == 0


# The same directory by another way


def test_a_directory_in_use_is_recognised_through_a_bind_mount(fresh_server, tmp_path):
    place = tmp_path / "elsewhere"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    bind = 0x1000
    if libc.mount(bytes(fresh_server.data_dir), bytes(place), None, bind, None) != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    try:
        url = "http://127.0.0.1:0"
        ended = run_kvd("--data-dir", str(place), "--listen-client-urls", url)
        assert ended.returncode == 73
        assert fresh_server.client().put("/still", "here").status == 201
    finally:
        assert libc.umount2(bytes(place), 2) == 0


# A disk that may only be read


def test_a_read_only_disk_is_refused_in_one_line(make_server, tmp_path):
    server = make_server(data_dir=tmp_path / "disk" / "data")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "kvd-test", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        server.start()
        server.client().put("/a", "1")
        assert server.terminate() == 0
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        url = "http://127.0.0.1:0"
        ended = run_kvd("--data-dir", str(server.data_dir), "--listen-client-urls", url)
        assert ended.returncode in (73, 74)
        assert ended.stderr.count("\n") == 1
        assert "Read-only file system" in ended.stderr
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        server.start()
        assert server.client().get("/a").json["node"]["value"] == "1"
        assert server.terminate() == 0
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
