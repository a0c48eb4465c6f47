"""Rows of a damaged index file and bytes of the spare segment, as evidence."""

from contextlib import suppress
from random import Random

import pytest

from kvd.storage.format.applied import Applied
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.sums import APPLIED_KEY
from kvd.storage.index.integrity.lmdb_file import look_up
from kvd.v2.commands import Set
from tests.support.stores import digest, live, open_store, write
from tests.support.witnesses import opened, verify


@pytest.mark.parametrize("at", [0, 4096, 40_000, 65_535])
def test_a_byte_set_in_the_spare_is_no_part_of_the_log(tmp_path, capsys, at):
    path = tmp_path / "data"
    store = open_store(path)
    live(store, Random(1), 5)
    store.wal._spare.reserve()
    store.close()
    spare = path / "wal" / "next.tmp"
    with spare.open("r+b") as file:
        file.seek(at)
        file.write(b"\x10")
    status, out = verify(path, capsys)
    assert status == 0
    assert f"wal/next.tmp: holds something at offset {at}," in out
    store = open_store(path)
    assert not any(spare.read_bytes())
    while len(store.wal.segments) < 2:
        write(store, Set(b"/a", b"v" * 5000))
    held = digest(store)
    store.close()
    assert opened(path) == (held, "clean stop")


def test_a_row_is_found_wherever_in_the_tree_it_is(tmp_path):
    store = open_store(tmp_path / "data")
    for number in range(30):
        write(store, *(Set(b"/%d/%d" % (number, i), b"v") for i in range(30)))
    store.flush()
    file = tmp_path / "data" / "index" / "data.mdb"
    assert Applied.decode(look_up(file, b"meta", APPLIED_KEY)) == store.applied
    with store.index.env.begin() as txn:
        rows = list(txn.cursor(db=store.index.tables[b"nodes"]).iternext())
        for key, value in rows[::37]:
            assert look_up(file, b"nodes", key) == value
    assert len(rows) > 900
    assert look_up(file, b"nodes", b"\xff" * 20) is None
    assert look_up(file, b"no table", b"a") is None
    assert look_up(tmp_path / "nowhere", b"meta", APPLIED_KEY) is None
    store.close()


def test_of_a_damaged_file_no_row_that_is_wrong_is_found(tmp_path):
    store = open_store(tmp_path / "data")
    live(store, Random(1), 20)
    applied = store.applied
    store.close()
    file = tmp_path / "data" / "index" / "data.mdb"
    good = file.read_bytes()
    dice = Random(7)
    damaged = tmp_path / "data.mdb"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(dice.choice((1, 4))):
            at = dice.randrange(len(data))
            data[at : at + 64] = dice.choice((bytes(64), dice.randbytes(64), b"\xff" * 64))
        damaged.write_bytes(data[: dice.choice((len(data), dice.randrange(len(data))))])
        found = look_up(damaged, b"meta", APPLIED_KEY)
        with suppress(CorruptIndex):
            assert Applied.decode(found).seq <= applied.seq  # an older state may be found
