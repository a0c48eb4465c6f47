"""Evidence of the first life of a store, from its first call on."""

import json
import os
import shutil
from zlib import crc32

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.storage.errors import LogMissing
from kvd.v2.commands import Set
from tests.support.stores import digest, open_store, write
from tests.support.witnesses import add, last_segment, opened, verify, write_and_die


def test_a_first_life_leaves_evidence_that_outlives_its_index(tmp_path, capsys):
    path = tmp_path / "data"
    write_and_die(path, 5)
    shutil.rmtree(path / "index")  # and the machine went, too
    last_segment(path).unlink()
    status, out = verify(path, capsys)
    assert status == 65
    assert f"is {path / 'wal'} mounted?" in out
    for verb in (
        ["backup"],
        ["restore"],
        ["digest"],
        ["compact"],
        ["repair", "--truncate-at", "1"],
    ):
        target = [str(tmp_path / "copy")] if verb[0] in {"backup", "restore"} else []
        assert kvdctl([*verb, str(path), *target]) == 65, verb
        assert not (tmp_path / "copy").exists()
    capsys.readouterr()
    for _ in range(2):
        with pytest.raises(LogMissing, match="FORMAT says that it was begun"):
            open_store(path)


def test_a_store_that_has_had_no_frame_starts_again(tmp_path, capsys):
    path = tmp_path / "data"
    open_store(path).close()
    for _ in range(2):
        assert not list((path / "wal").glob("*.wal"))
        assert verify(path, capsys)[0] == 0
        open_store(path).close()
    shutil.rmtree(path / "index")
    store = open_store(path)
    write(store, Set(b"/a", b"1"))
    store.close()


def test_a_store_of_an_older_version_says_that_its_log_was_begun_from_then_on(tmp_path):
    path = tmp_path / "data"
    held = add(path, 0, 5)
    line = json.loads((path / "FORMAT").read_text().splitlines()[0])
    assert line.pop("log") == "begun"
    text = json.dumps(line)
    (path / "FORMAT").write_text(f"{text}\n{crc32(text.encode()):08x}\n")
    assert opened(path)[0] == held
    shutil.rmtree(path / "index")
    last_segment(path).unlink()
    with pytest.raises(LogMissing):
        open_store(path)


def test_a_first_segment_on_a_full_disk_is_known_before_its_first_frame(tmp_path, monkeypatch):
    path = tmp_path / "data"
    store = open_store(path)
    with monkeypatch.context() as patch:
        refusal = OSError(28, os.strerror(28))

        def refuse(*_):
            raise refusal

        patch.setattr("kvd.storage.directory.format_file.disk.write_file_durably", refuse)
        txn = store.begin()
        store.journal.encode(txn, [b"\x82\x11\x01"], 1)
        with pytest.raises(Exception, match="No space"):
            store.journal.append(txn)
        txn.end()
    assert not store.directory.log_begun
    write(store, Set(b"/a", b"1"))
    assert store.directory.log_begun
    assert '"log": "begun"' in (path / "FORMAT").read_text()
    held = digest(store)
    store.close()
    assert opened(path, rebuild_index=True)[0] == held


def test_a_first_life_killed_at_any_call_starts_again(tmp_path, monkeypatch):
    """Neither evidence without a segment nor an acknowledged frame without evidence."""
    from kvd.storage import disk  # noqa: PLC0415 -- to be patched

    class Killed(BaseException):
        pass

    names = ("create", "write_at", "sync_file", "sync_data", "rename", "sync_directory")
    real = {name: getattr(disk, name) for name in names}
    for dies_at in range(200):
        path = tmp_path / str(dies_at)
        store = open_store(path)
        left = dies_at

        def call(name, *args):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real[name](*args)

        survived = False
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(disk, name, lambda *args, name=name: call(name, *args))
            try:
                write(store, Set(b"/a", b"1"))
                survived = True
            except Killed:
                pass
        store.index.env.close()
        store.directory.close()
        shutil.rmtree(path / "index")
        begun = '"log": "begun"' in (path / "FORMAT").read_text()
        assert begun or not survived
        assert list((path / "wal").glob("*.wal")) or not begun
        again = open_store(path)
        assert again.applied.index == (2 if survived else again.applied.index)
        again.close()
        if survived:
            assert dies_at > 8
            return
    raise AssertionError("it never survived")
