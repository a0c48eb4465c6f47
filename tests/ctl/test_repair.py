"""kvdctl repair: a store that starts again, and a way back."""

import hashlib
import json
import shutil
from pathlib import Path
from random import Random

import pytest

from kvd.storage import disk
from kvd.storage.format.payload import VERSION_SHA256
from kvd.storage.snapshot import directory as snapshots
from kvd.v2.commands import Set
from tests.support.ctl import contents, flip, kvdctl, printed_digest, start_outcome
from tests.support.server import run_kvd
from tests.support.stores import NOW_NS, open_store, write


def undo(kept, data):
    """Put back what a repair cut off, by its manifest."""
    manifest = json.loads((kept / "MANIFEST").read_text())
    tail = manifest["tail"]
    if tail:
        with (data / tail["file"]).open("r+b") as file:
            file.truncate(tail["file_size"])
            file.seek(tail["offset"])
            file.write((kept / "tail").read_bytes())
    for name in manifest["moved"]:
        if (kept / Path(name).name).exists():
            (kept / Path(name).name).rename(data / name)


def room_hashes(path):
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for room in ("wal", "snap")
        for file in (path / room).iterdir()
    }


@pytest.mark.parametrize("seed", range(12))
def test_the_repair_that_verify_names_makes_a_store_start_and_can_be_undone(
    data, capsys, caplog, seed
):
    dice = Random(seed)
    file = dice.choice(sorted((data / "wal").glob("*.wal")))
    flip(file, dice.randrange(file.stat().st_size), 1 << dice.randrange(8))
    original = room_hashes(data)
    status, out, _ = kvdctl(capsys, "verify", data)
    if "--truncate-at" not in out:
        # A bit of the very last frame (a torn tail), or before a snapshot: nothing is to be cut.
        assert ("Nothing is lost" in out) == (status != 0)
        assert start_outcome(data, caplog)[0]
        return
    index = int(out.split("--truncate-at ")[1].split()[0])
    status, out, err = kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)
    assert status == 0, err
    starts, _ = start_outcome(shutil.copytree(data, data.with_name("started")), caplog)
    assert starts
    assert printed_digest(capsys, data)[1] == index
    status, again, _ = kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)
    assert (status, "nothing to cut off" in again) == (0, True)
    if "kept in" in out:
        kept = Path(out.split("kept in ")[1].split(";")[0])
        undo(kept, data)
    assert room_hashes(data) == original


class Crash(BaseException):
    """Ends a run as a power cut would."""


@pytest.mark.parametrize("survived", range(0, 24, 2))
def test_a_repair_that_was_cut_short_is_finished_by_a_second_one(
    data, capsys, monkeypatch, survived
):
    flip(sorted((data / "wal").glob("*.wal"))[-3], 4300)
    original = room_hashes(data)
    _, out, _ = kvdctl(capsys, "verify", data)
    argv = ["repair", "--truncate-at", out.split("--truncate-at ")[1].split()[0], "--yes", data]
    left = [survived]

    def dying(call):
        def wrapped(*args):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return call(*args)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("rename", "truncate", "write_at", "sync_directory", "remove_if_there"):
            patch.setattr(disk, name, dying(getattr(disk, name)))
        try:
            kvdctl(capsys, *argv)
        except Crash:
            capsys.readouterr()
    assert kvdctl(capsys, *argv)[0] == 0
    assert kvdctl(capsys, "verify", data)[0] == 0
    assert printed_digest(capsys, data)[1] == int(argv[2])
    repairs = sorted((data / "quarantine").iterdir(), reverse=True)
    for kept in repairs:
        if (kept / "MANIFEST").exists():
            undo(kept, data)
    assert room_hashes(data) == original


@pytest.mark.parametrize("snapshots_kept", [0, 1, 2])
def test_a_repair_gives_the_state_the_store_had_at_that_index(data, capsys, snapshots_kept):
    _, out, _ = kvdctl(capsys, "dump", data)
    records = [json.loads(line) for line in out.splitlines()]
    ends = {record["frame"]: record["index"] for record in records if "index" in record}
    taken = sorted(snapshots.read_header(p).index for p in snapshots.available(data / "snap"))
    low, high = [1, *taken, 10**9][snapshots_kept : snapshots_kept + 2]
    index = Random(5).choice([end for end in ends.values() if low < end < high][:-1])
    expected = printed_digest(capsys, data, "--to-index", index)
    assert kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)[0] == 0
    assert printed_digest(capsys, data) == expected
    store = open_store(data)
    write(store, Set(b"/on", b""), now_ns=store.applied.time_ns)
    assert store.applied.index == index + 1
    store.close()
    assert kvdctl(capsys, "verify", data)[0] == 0


def test_a_batch_is_not_cut_in_two(tmp_path, capsys):
    store = open_store(tmp_path / "data")
    write(store, Set(b"/a", b"1"))
    write(store, Set(b"/b", b"2"), Set(b"/c", b"3"), Set(b"/d", b"4"))
    store.close()
    before = contents(tmp_path / "data")
    for options in ([], ["--yes"]):
        status, _, err = kvdctl(capsys, "repair", "--truncate-at", 4, *options, tmp_path / "data")
        assert status == 64
        assert "indexes 3 to 5 were written as one batch" in err
        assert "truncate at 2 or at 5" in err
    assert contents(tmp_path / "data") == before


def test_a_refused_start_says_what_is_good_and_what_to_do(data, capsys):
    shutil.rmtree(data / "snap")
    (data / "snap").mkdir()
    flip(sorted((data / "wal").glob("*.wal"))[2], 4200)
    ended = run_kvd("--data-dir", str(data), "--listen-client-urls", "http://127.0.0.1:0")
    assert ended.returncode == 65
    assert "Nothing was changed" in ended.stderr
    assert f"To inspect: kvdctl verify {data}" in ended.stderr
    index = int(ended.stderr.split("Last good: index ")[1].split(".")[0])
    assert f"kvdctl repair --truncate-at {index} {data}" in ended.stderr
    assert kvdctl(capsys, "repair", "--truncate-at", index, "--yes", data)[0] == 0
    assert kvdctl(capsys, "verify", data)[0] == 0


@pytest.mark.parametrize("rebuild", [(), ("--rebuild-index",)], ids=["start", "rebuild"])
def test_what_a_later_version_wrote_is_not_cut_off(tmp_path, capsys, rebuild):
    path = tmp_path / "data"
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    txn = store.begin()
    store.journal.encode(txn, [], NOW_NS)
    payload = bytearray(txn.payload)
    txn.end()
    payload[1] = VERSION_SHA256 + 1
    store.wal.append(bytes(payload), first_index=3, count=0)
    store.close()
    before = contents(path / "wal")
    url = "http://127.0.0.1:0"
    ended = run_kvd("--data-dir", str(path), "--listen-client-urls", url, *rebuild)
    assert ended.returncode == 78
    assert "a later version of kvd has written it" in ended.stderr
    assert "truncate" not in ended.stderr
    for argv in (["verify"], ["dump"], ["repair", "--yes", "--truncate-at", "2"], ["compact"]):
        status, _, err = kvdctl(capsys, *argv, path)
        assert status == 78, argv
        assert "a later version of kvd has written it" in err
    assert contents(path / "wal") == before
