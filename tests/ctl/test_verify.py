"""kvdctl verify: it says what a start would, and changes nothing."""

import shutil
from random import Random

import pytest

from kvd.v2.commands import Set
from tests.support.ctl import contents, flip, kvdctl, make_store, printed_digest, start_outcome
from tests.support.stores import open_store, write


def harm(path, dice):
    """Damage one file of the truth somehow."""
    files = sorted([*path.glob("wal/*.wal"), *path.glob("snap/*.snap")])
    file = dice.choice(files)
    size = file.stat().st_size
    way = dice.choice(["flip", "flip", "flip", "truncate", "remove", "overwrite", "swap", "append"])
    match way:
        case "flip":
            flip(file, dice.randrange(size), 1 << dice.randrange(8))
        case "truncate":
            with file.open("r+b") as opened:
                opened.truncate(dice.randrange(size))
        case "remove":
            file.unlink()
        case "overwrite":
            with file.open("r+b") as opened:
                opened.seek(dice.randrange(size))
                opened.write(dice.randbytes(200))
        case "swap":
            other = dice.choice(files)
            one, two = file.read_bytes(), other.read_bytes()
            file.write_bytes(two)
            other.write_bytes(one)
        case "append":
            with file.open("ab") as opened:
                opened.write(dice.randbytes(100))


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("index", ["clean", "gone"])
def test_verify_agrees_with_the_server_on_damaged_directories(tmp_path, capsys, caplog, index):
    data = make_store(tmp_path / "data", batches=12)
    kept = tmp_path / "kept"
    shutil.copytree(data, kept)
    outcomes = {True: 0, False: 0}
    for seed in range(25):
        # In place, so that the index keeps its inode and with it the mark that vouches for it.
        for room in ("wal", "snap", "quarantine"):
            shutil.rmtree(data / room)
            shutil.copytree(kept / room, data / room)
        if index == "gone":
            shutil.rmtree(data / "index")
            (data / "index").mkdir()
        harm(data, Random(seed))
        status, out, err = kvdctl(capsys, "verify", data)
        assert err == ""
        starts, warnings = start_outcome(data, caplog)
        outcomes[starts] += 1
        says = next(line for line in out.splitlines() if " start: " in line)
        assert says.startswith("good") == starts, f"seed {seed}: {out}"
        if not starts:
            assert status == 65, f"seed {seed}: {out}"
        elif status == 0:
            set_aside = [record for record in caplog.records if "set aside" in record.message]
            assert not set_aside, f"seed {seed}: {out}"
            assert warnings <= 1  # of a torn tail
    assert min(outcomes.values()) > 3


@pytest.mark.parametrize("stop", ["clean", "killed"])
def test_verify_knows_a_torn_tail_from_damage_after_a_clean_stop(tmp_path, capsys, caplog, stop):
    data = tmp_path / "data"
    store = open_store(data)
    write(store, Set(b"/a", b"1"))
    end = store.wal.position.offset
    store.close()
    if stop == "killed":
        (data / "index" / "CLEAN").unlink()
    (segment,) = (data / "wal").glob("*.wal")
    with segment.open("r+b") as file:
        file.seek(end + 48)  # behind the heartbeat that may follow
        file.write(b"half a frame")
    status, out, _ = kvdctl(capsys, "verify", data)
    assert (status, "note     wal/" in out) == ((65, False) if stop == "clean" else (0, True))
    if stop == "clean":
        assert kvdctl(capsys, "repair", "--truncate-at", 2, "--yes", data)[0] == 0
    assert start_outcome(data, caplog)[0]
    assert printed_digest(capsys, data)[1] == 2


def test_verify_reads_the_index_and_compares_it_with_the_log(tmp_path, capsys):
    data = make_store(tmp_path / "data")
    status, out, _ = kvdctl(capsys, "verify", data)
    assert status == 0
    assert "good     index: agrees with the log" in out
    # An index of the same place, but with another value: a page of an older life, say.
    file = data / "index" / "data.mdb"
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"v" * 300, b"w" * 300))
    status, out, _ = kvdctl(capsys, "verify", data)
    assert status == 65
    assert "DAMAGED  index:" in out
    assert "--rebuild-index" in out


def test_verify_and_repair_without_yes_change_no_byte(data, capsys):
    flip(sorted((data / "wal").glob("*.wal"))[-2], 4200)
    before = contents(data)
    status, out, _ = kvdctl(capsys, "verify", data)
    assert status == 65
    index = int(out.split("--truncate-at ")[1].split()[0])
    status, out, _ = kvdctl(capsys, "repair", "--truncate-at", index, data)
    assert status == 0
    assert "nothing was changed" in out
    assert contents(data) == before
