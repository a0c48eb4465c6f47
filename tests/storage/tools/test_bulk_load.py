"""bulk_load.py: a store from many keys at once is the one that as many sets would have made."""

import pytest

from kvd.storage.errors import DirectoryUnusable
from kvd.storage.tools.bulk_load import bulk_load
from kvd.storage.tools.digest import digest
from kvd.storage.tools.source import reading
from kvd.storage.tools.verify import Verdict, verify
from kvd.v2.commands import Set
from tests.support.stores import LONG, NOW_NS, open_store, write

ITEMS = [
    (b"/a", b"1"),
    (b"/dir/deep/b", b""),
    (b"/dir/c", b"3"),
    (b"/a", b"again"),
    (b"/dir/" + LONG * 2, b"\x00\xff" * 200),
    (b"/_hidden/x", b"5"),
]


def many(count):
    return [(b"/many/%03d/%06d" % (i * 7 % 100, i), b"%d" % i) for i in range(count)]


@pytest.mark.parametrize("items", [ITEMS, many(2500), []], ids=["odd", "many", "none"])
def test_a_loaded_store_is_what_as_many_sets_make(tmp_path, items):
    loaded = bulk_load(tmp_path / "loaded", items, time_ns=NOW_NS)
    assert loaded.index == 1 + len(items)
    written = open_store(tmp_path / "written")
    for path, value in items:
        write(written, Set(path, value))
    store = open_store(tmp_path / "loaded")
    assert store.identity.cluster_id == loaded.cluster_id
    assert digest(store.view) == digest(written.view)
    written.close()
    store.close()


def test_a_loaded_store_starts_as_after_a_clean_stop_and_goes_on(tmp_path):
    bulk_load(tmp_path / "data", ITEMS)
    store = open_store(tmp_path / "data")
    assert store.recovery == ("clean stop", 0)
    write(store, Set(b"/dir/c", b"4"), now_ns=store.applied.time_ns)
    held = digest(store.view)
    store.close()
    store = open_store(tmp_path / "data", rebuild_index=True)
    assert digest(store.view) == held
    assert store.view.find(b"/dir/c").modified_index == len(ITEMS) + 2
    store.close()


def test_a_loaded_store_passes_every_check(tmp_path):
    bulk_load(tmp_path / "data", ITEMS)
    (tmp_path / "scratch").mkdir()
    with reading(tmp_path / "data") as source:
        findings = list(verify(source, tmp_path / "scratch"))
    assert {finding.verdict for finding in findings} == {Verdict.GOOD}


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([(b"/a", b""), (b"/a/b", b"")], "leads through b'/a', which is a file"),
        ([(b"/a/b", b""), (b"/a", b"")], "is a directory"),
        ([(b"/", b"")], "no clean path"),
        ([(b"a", b"")], "no clean path"),
        ([(b"/a//b", b"")], "no clean path"),
        ([(b"/a/", b"")], "no clean path"),
    ],
)
def test_what_no_set_could_make_is_refused_and_leaves_nothing(tmp_path, items, reason):
    with pytest.raises(ValueError, match=reason):
        bulk_load(tmp_path / "data", items)
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_stands_there_is_touched(tmp_path):
    bulk_load(tmp_path / "data", ITEMS)
    with pytest.raises(DirectoryUnusable, match="is not empty"):
        bulk_load(tmp_path / "data", [])
    store = open_store(tmp_path / "data")
    assert store.view.find(b"/a").value == b"again"
    store.close()
