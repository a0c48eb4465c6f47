"""A data directory of each format that was ever released opens for ever: tests/golden/stores/."""

import base64
import io
import tarfile
from pathlib import Path

import pytest

from kvd.storage.format.node import Node
from kvd.storage.tools.digest import digest
from kvd.storage.tools.source import reading
from kvd.storage.tools.verify import Verdict, verify
from kvd.v2.commands import Set
from tests.support.stores import LONG, NOW_NS, SECOND_NS, open_store, write

STORES = Path(__file__).parent.parent / "golden" / "stores"
# Written by kvd 0.1.0 before its release: every kind of record and of frame is in the first,
# payloads of versions 1 and 2 by turns in the second; two snapshots and the whole log, segments of
# 8 KiB.
DIGESTS = {
    "format-1": "974b2640521d31c9dc9363147b61433bff79a8e750240b6aa74fdf2c0b6965a7",
    "format-1-sha256": "90851acc3f115dc85da779ff25fb328a9ae47c072dc1015a847f99576acf5273",
}


def unpack(name, path):
    packed = base64.b64decode((STORES / f"{name}.base64").read_bytes())
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(path, filter="data")
    for room in ("snap", "wal"):
        assert (path / room).is_dir()
    return path


def test_every_format_has_its_store():
    assert {path.stem for path in STORES.iterdir()} == DIGESTS.keys()


@pytest.mark.parametrize("name", DIGESTS)
@pytest.mark.parametrize("base", ["newest snapshot", "older snapshot", "log"])
def test_a_store_of_every_format_opens_with_all_that_it_held(tmp_path, name, base):
    path = unpack(name, tmp_path / "data")
    older, newest = sorted((path / "snap").iterdir())
    if base != "newest snapshot":
        newest.unlink()
    if base == "log":
        older.unlink()
    store = open_store(path)
    assert digest(store.view) == DIGESTS[name]
    kept = store.log_scrubber()
    assert not kept.check(3600)
    assert bool(kept.frames) == (base != "log")
    write(store, Set(b"/new", b"1"), now_ns=store.applied.time_ns)
    held = digest(store.view)
    store.close()
    store = open_store(path)
    assert (digest(store.view), store.recovery.source) == (held, "clean stop")
    store.close()


def test_what_format_1_held(tmp_path):
    store = open_store(unpack("format-1", tmp_path / "data"))
    view = store.view
    assert view.find(b"/plain") == Node(b"value", 2, 2)
    assert view.find(b"/empty") == Node(b"", 3, 3)
    assert view.find(b"/bytes/\xff\xfe\x00") == Node(b"\x00\xff", 4, 4)
    assert view.find(b"/long/" + LONG * 2) == Node(b"long name", 5, 5)
    assert view.find(b"/leased") == Node(b"for an hour", 6, 6, NOW_NS + 3600 * SECOND_NS)
    assert view.document("user", "root") == (17, "user", "root", b'{"user":"root"}', b"$2b$")
    assert view.document("member", "me") == (18, "member", "me", b"{}", None)
    applied = store.applied
    assert (applied.index, applied.term, applied.history_limit) == (104, 2, 50)
    assert [event.change.index for event in view.events(0)] == list(range(55, 105))
    store.close()


@pytest.mark.parametrize("name", DIGESTS)
def test_a_store_of_every_format_passes_every_check(tmp_path, name):
    path = unpack(name, tmp_path / "data")
    (tmp_path / "scratch").mkdir()
    with reading(path) as source:
        found = [f for f in verify(source, tmp_path / "scratch") if f.verdict is Verdict.DAMAGED]
    assert found == []
