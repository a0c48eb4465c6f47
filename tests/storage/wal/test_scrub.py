"""storage/wal/scrub.py: what a start has not read of the log is read while the server runs."""

import pytest

from kvd.storage.errors import CorruptLog
from kvd.storage.tools.bulk_load import bulk_load
from kvd.v2.commands import Set
from tests.support.stores import SEGMENT, open_store, write

SMALL_SEGMENT = 8192


def make(path, writes=40):
    """A store that was stopped cleanly, with a snapshot in the middle of its log."""
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    for i in range(writes):
        write(store, Set(b"/%d" % i, b"v" * 700))
        if i == writes // 2:
            store.flush()
            store.snapshot()
    store.close()
    return sorted((path / "wal").glob("*.wal"))


def read(store, seconds=3600.0):
    """Read the kept log; return how many slices and frames that took."""
    kept = store.log_scrubber()
    slices = 1
    while kept.check(seconds):
        slices += 1
    return slices, kept.frames


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("source", ["clean stop", "snapshot"])
def test_all_before_the_place_where_the_start_began_is_read(tmp_path, source):
    make(tmp_path / "data")
    store = open_store(tmp_path / "data", rebuild_index=source == "snapshot")
    assert store.recovery.source.startswith(source)
    # The place is the end of the last frame that a clean stop has left, or that a snapshot covers.
    covered = {"clean stop": 40, "snapshot": 21}[source]
    assert read(store) == (1, covered - 1)
    store.close()


def test_it_is_read_in_slices(tmp_path):
    make(tmp_path / "data")
    store = open_store(tmp_path / "data")
    assert read(store, seconds=0) == (40, 39)
    store.close()


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_damage_is_found_with_its_place_and_the_last_good_index(tmp_path, place):
    segments = make(tmp_path / "data")
    hurt = {"first": segments[0], "middle": segments[2], "last": segments[-1]}[place]
    first_seq = int(hurt.name[17:33], 16)
    flip(hurt, 4096 + 200)
    store = open_store(tmp_path / "data")
    assert store.recovery.source == "clean stop"
    kept = store.log_scrubber()
    with pytest.raises(CorruptLog, match=rf"{hurt.name}: offset 4096: frame {first_seq} fails"):
        kept.check(3600)
    # Each write but the seals is a frame, and an index.
    seals = segments.index(hurt)
    assert kept.last_index == first_seq - seals
    assert store.view.find(b"/39").value == b"v" * 700
    store.close()


def test_a_missing_segment_is_found(tmp_path):
    path = tmp_path / "data"
    segments = make(path)
    store = open_store(path)
    segments[1].unlink()
    with pytest.raises(CorruptLog, match=r"segment 2 before it is missing"):
        read(store)
    store.close()


def test_a_log_that_leads_elsewhere_is_found(tmp_path):
    make(tmp_path / "data")
    store = open_store(tmp_path / "data")
    store.read_from = store.read_from._replace(crc=store.read_from.crc ^ 1)
    with pytest.raises(CorruptLog, match="ends here, expected"):
        read(store)
    store.close()


def test_the_log_may_be_purged_meanwhile(tmp_path):
    make(tmp_path / "data")
    store = open_store(tmp_path / "data", segment_bytes_max=SMALL_SEGMENT)
    kept = store.log_scrubber()
    assert kept.check(0)
    store.flush()
    store.snapshot()
    write(store, Set(b"/x", b""))
    store.flush()
    assert store.purge(store.snapshot())
    while kept.check(0):
        pass
    store.close()


@pytest.mark.parametrize("make_it", [lambda path: bulk_load(path, [(b"/a", b"1")]), lambda _: None])
def test_where_nothing_is_kept_there_is_nothing_to_read(tmp_path, make_it):
    make_it(tmp_path / "data")
    store = open_store(tmp_path / "data", segment_bytes_max=SEGMENT)
    write(store, Set(b"/b", b"2"))
    assert read(store) == (1, 0)
    store.close()
