"""storage/snapshot/scrub.py: snapshots that a start has not read are read while the server runs."""

import asyncio
import logging
import shutil

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.storage.errors import CorruptLog
from kvd.storage.snapshot import directory
from kvd.v2.commands import Set
from tests.support.house import SMALL_SEGMENT, kept
from tests.support.log_texts import log_text
from tests.support.stores import digest, open_store, write
from tests.support.waiting import until


@pytest.fixture(scope="module")
def purged(tmp_path_factory):
    """A store whose log was purged behind its two snapshots, stopped cleanly; and its digest."""
    path = tmp_path_factory.mktemp("purged") / "data"
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    for i in range(40):
        write(store, Set(b"/%d" % i, b"v" * 700))
        if i in (20, 30):
            store.flush()
            store.purge(store.snapshot())
    held = digest(store)
    store.close()
    assert len(directory.available(path / "snap")) == 2
    return path, held


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def another_stores(path):
    place = path.parents[2] / f"other than {path.name}"
    other = open_store(place)
    write(other, Set(b"/a", b"1"))
    other.flush()
    other.snapshot()
    other.close()
    (found,) = directory.available(place / "snap")
    shutil.copyfile(found, path)


HARMS = {
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "bad head": lambda path: flip(path, 100),
    "bad header": lambda path: flip(path, 4096 + 70),
    "bad rows": lambda path: flip(path, path.stat().st_size // 2),
    "bad footer": lambda path: flip(path, path.stat().st_size - 20),
    "of another store": another_stores,
}


def errors(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("which", ["all", "newest", "oldest"])
def test_snapshots_that_are_of_no_use_are_reported_and_replaced_at_once(
    purged, tmp_path, caplog, which, harm
):
    path = tmp_path / "data"
    shutil.copytree(purged[0], path)
    # A copy is rebuilt, which reads a snapshot; a clean stop of the copy lets the next start reuse.
    open_store(path, segment_bytes_max=SMALL_SEGMENT).close()
    newest, oldest = directory.available(path / "snap")
    for victim in {"all": [newest, oldest], "newest": [newest], "oldest": [oldest]}[which]:
        HARMS[harm](victim)
    harmless = harm == "gone" and which != "all"
    caplog.clear()

    async def scenario():
        async with kept(path, None) as house:
            assert house.store.recovery.source.startswith("clean stop")
            house.housekeeping.tick()
            if harmless:
                await until(lambda: house.housekeeping._snapshot_scrubber is None)
                assert house.taken()
                return
            await until(lambda: house.housekeeping.damage)
            assert house.begun <= 1
            await until(lambda: house.housekeeping.tick() or not house.housekeeping.damage)
            assert house.begun == 1
            assert house.taken()[0] != newest

    asyncio.run(scenario())
    assert len(errors(caplog)) == (0 if harmless else 1)
    assert all("\n" not in line and "kvdctl verify --force" in line for line in errors(caplog))
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT, rebuild_index=True)
    assert digest(store) == purged[1]
    assert store.recovery.source.startswith("snapshot ")
    store.close()


def test_good_snapshots_are_read_in_slices_and_nothing_is_said(purged, tmp_path, caplog):
    path = tmp_path / "data"
    shutil.copytree(purged[0], path)
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    snapshots = store.snapshot_scrubber()
    slices = 1
    while snapshots.check(0):
        slices += 1
    assert slices == 3
    assert (snapshots.good, snapshots.bad) == (2, [])
    store.close()
    assert caplog.text == ""


def test_what_is_pruned_meanwhile_is_not_missed(purged, tmp_path):
    path = tmp_path / "data"
    shutil.copytree(purged[0], path)
    store = open_store(path, segment_bytes_max=SMALL_SEGMENT)
    snapshots = store.snapshot_scrubber()
    assert snapshots.check(0)
    write(store, Set(b"/a", b"1"))
    store.flush()
    store.snapshot()
    assert not snapshots.check(3600.0)
    assert snapshots.bad == []
    store.close()


@pytest.mark.parametrize("harm", ["gone", "bad rows"])
def test_as_long_as_there_is_no_new_one_the_server_is_unhealthy(make_server, purged, harm):
    server = make_server()
    shutil.copytree(purged[0], server.data_dir)
    server.start()
    server.terminate()
    for path in directory.available(server.data_dir / "snap"):
        HARMS[harm](path)
    delay = ("--enable-failpoints", "--failpoint", "snapshotBeforeCopy=delay:600")
    server.start(*delay)
    server.wait_for_log(log_text("A snapshot is taken now"))
    client = server.client()
    assert client.request("GET", "/health").status == 503
    ready = client.request("GET", "/readyz")
    assert ready.status == 503
    assert b"snapshots are missing or damaged, and there is no new one yet" in ready.body
    assert client.get("/7").json["node"]["value"] == "v" * 700
    assert client.put("/new", "1").status == 201
    server.kill()
    server.start()
    server.wait_for_log("a snapshot was taken: it replaces those that are missing or damaged")
    assert server.client().request("GET", "/readyz").status == 200
    server.kill()
    server.start("--rebuild-index")
    assert server.client().get("/new").json["node"]["value"] == "1"


def test_verify_finds_that_only_the_index_is_left(purged, tmp_path, capsys):
    path = tmp_path / "data"
    shutil.copytree(purged[0], path)
    open_store(path, segment_bytes_max=SMALL_SEGMENT).close()
    for found in directory.available(path / "snap"):
        found.unlink()
    assert kvdctl(["verify", str(path)]) == 65
    out = capsys.readouterr().out
    assert "DAMAGED  snap: there is no good one, but the beginning of the log is gone" in out
    assert "a server starts from the index" in out
    with pytest.raises(CorruptLog):
        open_store(path, rebuild_index=True)
