"""Another replica's snapshot as the content of a store: whole, or not at all."""

import shutil
from random import Random

import pytest

from kvd.storage.errors import CorruptLog, CorruptSnapshot, OtherHistory
from kvd.storage.format.identity import NewIds
from kvd.storage.snapshot import directory
from kvd.storage.tools.install import install
from kvd.storage.tools.source import reading
from kvd.storage.tools.verify import Verdict, verify
from kvd.v2.commands import Set
from tests.storage.test_replicas import follow, frames
from tests.support.dying_disk import dying_after
from tests.support.lives import SMALL_SEGMENT, append_garbage, damage, segments
from tests.support.stores import NOW_NS, digest, live, open_store, write

SEGMENT = {"segment_bytes_max": SMALL_SEGMENT}
IDS = {member: NewIds(0xC1, member) for member in (1, 2)}


def opened(path, member=2, **options):
    return open_store(path, new_ids=IDS[member], **SEGMENT, **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The payloads of a leader, its snapshot after the last of them, and the digest of it."""
    path = tmp_path_factory.mktemp("leader") / "data"
    store = opened(path, 1)
    store.start_term(NOW_NS, 40)
    live(store, Random(7), 40)
    store.flush()
    store.snapshot()
    held, payloads = digest(store), frames(store)
    store.close()
    return payloads, directory.available(path / "snap")[0], held


@pytest.fixture(scope="module")
def old(tmp_path_factory, source):
    """A follower that is behind, closed: its directory, and its digest."""
    path = tmp_path_factory.mktemp("follower") / "data"
    store = opened(path)
    for number, payload in enumerate(source[0][:20]):
        follow(store, payload)
        if number % 8 == 7:
            store.flush()
            store.snapshot()
    held = digest(store)
    store.close()
    return path, held


@pytest.fixture
def behind(old, tmp_path):
    """A copy of it."""
    return shutil.copytree(old[0], tmp_path / "data")


def received(path, source):
    target = path / "snap" / "received.tmp"
    shutil.copyfile(source[1], target)
    return target


def installed(path, source):
    return install(path, received(path, source), **SEGMENT)


def test_a_store_gets_the_content_and_keeps_its_identity(behind, source):
    before = directory.own_header(directory.available(behind / "snap")[0], _uuid(behind))
    header = installed(behind, source)
    assert (header.store_uuid, header.member_id) == (before.store_uuid, 2)
    assert header.payload_seq == len(source[0])
    store = opened(behind)
    assert digest(store) == source[2]
    assert store.recovery.records == 0
    assert [path.name for path in directory.available(behind / "snap")] == [
        directory.name_of(header)
    ]
    assert len(segments(behind)) == 1
    store.close()
    assert not any(behind.rglob("*.tmp"))


def _uuid(path):
    with reading(path) as found:
        return found.identity.store_uuid


def test_the_history_goes_on_behind_it(behind, source, tmp_path):
    installed(behind, source)
    for options in ({}, {}, {"rebuild_index": True}):
        store = opened(behind, **options)
        write(store, Set(b"/next", b"1"), now_ns=store.applied.time_ns)
        live(store, Random(1), 5)
        store.flush()
        store.snapshot()
        held = digest(store)
        store.close()
    store = opened(behind, rebuild_index=True)
    assert digest(store) == held
    store.close()
    with reading(behind) as found:
        findings = list(verify(found, tmp_path))
    assert [finding for finding in findings if finding.verdict is Verdict.DAMAGED] == []


def test_a_new_store_gets_it(tmp_path, source):
    opened(tmp_path / "data").close()
    installed(tmp_path / "data", source)
    store = opened(tmp_path / "data")
    assert digest(store) == source[2]
    store.close()


def test_a_log_that_was_torn_is_cut_first(behind, source):
    store = opened(behind)
    end = store.wal.position.offset
    store.abandon()
    append_garbage(behind, end)
    installed(behind, source)
    store = opened(behind)
    assert digest(store) == source[2]
    store.close()


def test_it_can_be_installed_again_at_once(behind, source):
    first, second = installed(behind, source), installed(behind, source)
    assert first == second
    store = opened(behind)
    assert digest(store) == source[2]
    store.close()


def test_a_log_on_another_disk_stays_there(tmp_path, source):
    opened(tmp_path / "data", wal_dir=tmp_path / "log").close()
    installed(tmp_path / "data", source)
    store = opened(tmp_path / "data", wal_dir=tmp_path / "log")
    assert digest(store) == source[2]
    store.close()


def test_a_damaged_snapshot_changes_nothing(behind, source, old):
    file = received(behind, source)
    damage(file)
    with pytest.raises(CorruptSnapshot):
        install(behind, file, **SEGMENT)
    store = opened(behind)
    assert digest(store) == old[1]
    store.close()


def test_a_damaged_store_is_refused(behind, source):
    damage(segments(behind)[-2], 4200)
    for path in directory.available(behind / "snap"):
        path.unlink()
    with pytest.raises(CorruptLog):
        installed(behind, source)


def test_another_clusters_snapshot_is_refused(tmp_path, source):
    open_store(tmp_path / "data", new_ids=NewIds(0xC2, 2)).close()
    with pytest.raises(OtherHistory, match="cluster"):
        installed(tmp_path / "data", source)


def test_an_earlier_state_is_refused(tmp_path, behind, source):
    store = opened(behind)
    live(store, Random(3), 60)
    store.flush()
    store.snapshot()
    held = digest(store)
    store.close()
    with pytest.raises(OtherHistory, match="holds a snapshot of index"):
        installed(behind, source)
    store = opened(behind)
    assert digest(store) == held
    store.close()


@pytest.fixture(params=["behind", "new"])
def template(request, old, tmp_path):
    """A store to install into, behind or new: its directory, and its digest."""
    if request.param == "behind":
        return old
    store = opened(tmp_path / "new")
    was = digest(store)
    store.close()
    return tmp_path / "new", was


@pytest.mark.parametrize("loses_names", [False, True], ids=["killed", "power cut"])
def test_a_crash_at_any_point_leaves_the_old_store_or_the_new_one(
    tmp_path, template, source, monkeypatch, loses_names
):
    outcomes = []
    while True:
        path = shutil.copytree(template[0], tmp_path / f"{len(outcomes)}")
        opened(path).close()  # its index is vouched for where it lies now
        file = received(path, source)
        with dying_after(monkeypatch, len(outcomes), tmp_path, loses_names=loses_names) as dying:
            install(path, file, **SEGMENT)
        store = opened(path)
        outcomes.append(digest(store))
        store.close()
        shutil.rmtree(path)
        if not dying.died:
            break
    changes = outcomes.index(source[2])
    assert set(outcomes[:changes]) == {template[1]}
    assert set(outcomes[changes:]) == {source[2]}
    assert changes > 15
    assert len(outcomes) - changes >= 2


@pytest.mark.parametrize("calls", [10, 20, 25])
def test_after_a_crash_it_can_be_tried_again(behind, source, monkeypatch, tmp_path, calls):
    file = received(behind, source)
    with dying_after(monkeypatch, calls, tmp_path, loses_names=True) as dying:
        install(behind, file, **SEGMENT)
    assert dying.died
    installed(behind, source)
    store = opened(behind)
    assert digest(store) == source[2]
    write(store, Set(b"/next", b"1"), now_ns=store.applied.time_ns)
    store.close()


def test_a_start_that_dies_while_it_cleans_up_is_followed_by_one_that_goes_on(
    behind, source, monkeypatch, tmp_path
):
    installed(behind, source)
    for calls in range(60):
        with dying_after(monkeypatch, calls, tmp_path, loses_names=False) as dying:
            opened(behind).close()
        if not dying.died:
            break
    assert not dying.died
    assert len(segments(behind)) == len(directory.available(behind / "snap")) == 1
    store = opened(behind)
    assert digest(store) == source[2]
    store.close()
