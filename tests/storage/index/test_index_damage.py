"""Whatever is damaged in the index of a stopped store: it is right, or the second start is."""

import json
import subprocess
import sys
from random import Random

import lmdb
import pytest

from kvd.storage.format.node import CorruptIndex, encode_key
from kvd.storage.format.records import Document, Kind
from kvd.storage.format.tables import TABLES
from kvd.storage.index.integrity.completeness import _ROWS_AT_START
from kvd.storage.index.integrity.pages import prove_pages
from kvd.storage.tools.bulk_load import bulk_load
from kvd.v2.commands import Delete, Set
from tests.support.damaged import REBUILT, RIGHT, TRY_AGAIN
from tests.support.log_texts import log_text
from tests.support.server import ROOT, Server
from tests.support.stores import NOW_NS, log_documents, open_store, reclaim_all, sweep, write

PAGE = 4096
HEAD_BYTES = 16
SAMPLE = 80


@pytest.fixture
def path(tmp_path):
    """A stopped store with all that an index can hold, on pages of every kind."""
    path = tmp_path / "data"
    store = open_store(path)
    store.start_term(NOW_NS, 60)
    for d in range(3):
        write(store, *(Set(b"/%d/%d" % (d, i), b"v" * i, ttl_s=i % 3 or None) for i in range(120)))
    write(store, *(Set(b"/large/%d" % i, b"v" * 5000 * i) for i in range(4)))
    write(store, Delete(b"/1", recursive=True))
    log_documents(store, *(Document(Kind.AUTH, "user", f"u{i}", b"{}" * 40) for i in range(80)))
    sweep(store, NOW_NS + 10_000_000_000)
    reclaim_all(store)
    write(store, *(Set(b"/2/%d" % i, b"w", ttl_s=999) for i in range(0, 120, 3)))
    write(store, Delete(b"/0", recursive=True))
    store.close()
    return path


def check(path, damages):
    """Damage a store in these ways, one after the other: no start may serve what is wrong."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.support.damaged", path],
        cwd=ROOT,
        input="".join(json.dumps(damage) + "\n" for damage in damages),
        capture_output=True,
        text=True,
        check=True,
    )
    outcomes = [tuple(map(int, line.split())) for line in finished.stdout.splitlines()]
    assert len(outcomes) == len(damages)
    for damage, (first, second) in zip(damages, outcomes, strict=True):
        assert first in (RIGHT, REBUILT, TRY_AGAIN) or first < 0, (damage, first)
        assert second in (RIGHT, REBUILT), (damage, first, second)
    return {first for first, _ in outcomes}


def flipped(content, bits):
    return [[[bit // 8, f"{content[bit // 8] ^ 1 << bit % 8:02x}"]] for bit in bits]


def head_bits(path):
    content = (path / "index" / "data.mdb").read_bytes()
    bits = [
        8 * page + bit
        for page in range(0, len(content), PAGE)
        if any(content[page : page + PAGE])
        for bit in range(8 * HEAD_BYTES)
    ]
    return content, bits


def test_a_bit_of_a_page_s_head_is_never_believed(path):
    content, bits = head_bits(path)
    assert len(bits) > 20 * SAMPLE
    assert check(path, flipped(content, Random(1).sample(bits, SAMPLE))) > {RIGHT, REBUILT}


@pytest.mark.durability_full
@pytest.mark.timeout(0)
def test_no_bit_of_any_page_s_head_is_believed(path):
    content, bits = head_bits(path)
    check(path, flipped(content, bits))


def random_damage(dice, size):
    data = dice.choice((bytes(512), dice.randbytes(dice.choice((1, 8, 100)))))
    at = dice.randrange(size - 512)
    return [[at - at % 512 if len(data) == 512 else at, data.hex()]]


@pytest.mark.parametrize(
    "rounds",
    [60, pytest.param(4000, marks=[pytest.mark.durability_full, pytest.mark.timeout(0)])],
)
def test_random_bytes_and_zeros_are_never_believed(path, rounds):
    dice = Random(2)
    size = (path / "index" / "data.mdb").stat().st_size
    check(path, [random_damage(dice, size) for _ in range(rounds)])


def test_each_page_of_an_index_has_one_place(path):
    prove_pages(path / "index" / "data.mdb")


@pytest.mark.parametrize("number", [1, 1 << 41])
def test_a_leaf_that_says_it_is_another_page_is_found_before_that_one_is_freed(path, number):
    """LMDB would free the page that a leaf says it is, and write over what stands there."""
    file = path / "index" / "data.mdb"
    with lmdb.open(str(file.parent), readonly=True, lock=False, max_dbs=len(TABLES)) as env:
        tables = [env.open_db(name, create=False) for name in TABLES]
        with env.begin() as txn:
            leaves = sum(txn.stat(table)["leaf_pages"] for table in tables)
    content = file.read_bytes()
    found = 0
    for page in range(2 * PAGE, len(content), PAGE):
        head = (int.from_bytes(content[page : page + 8], "little") ^ number).to_bytes(8, "little")
        is_leaf = content[page + 10 : page + 12] == b"\2\0"
        if is_leaf and not proves(file, content[:page] + head + content[page + 8 :]):
            found += 1
    assert leaves > 10
    assert found == leaves + 2  # the free list, and the names of the tables


def test_a_leaf_that_calls_its_rows_free_is_found_before_it_is_written_to(path):
    file = path / "index" / "data.mdb"
    content = file.read_bytes()
    found = 0
    for page in range(2 * PAGE, len(content), PAGE):
        upper = int.from_bytes(content[page + 14 : page + 16], "little")
        if content[page + 10 : page + 12] == b"\2\0" and upper < PAGE:
            head = (upper + 2).to_bytes(2, "little")
            found += not proves(file, content[: page + 14] + head + content[page + 16 :])
    assert found > 10


def proves(file, content):
    file.write_bytes(content)
    try:
        prove_pages(file)
    except CorruptIndex:
        return False
    return True


def test_a_page_that_ends_the_process_does_so_once(path):
    """512 zeros at the head of each leaf: an assertion of LMDB ends the process in it."""
    data = path / "index" / "data.mdb"
    content = data.read_bytes()
    with data.open("r+b") as file:
        for page in range(2 * PAGE, len(content), PAGE):
            if content[page + 10] == 2 and content[page : page + 8] != bytes(8):
                file.seek(page)
                file.write(bytes(512))
    (path / "index" / "CRASH").write_bytes(b"Fatal Python error: Aborted\n\nCurrent thread\n")
    server = Server(path).start()
    try:
        assert server.client().get("/large/1").json["node"]["value"] == "v" * 5000
        server.wait_for_log("ended by it; it will be rebuilt: Fatal Python error: Aborted")
    finally:
        server.stop()


def test_a_hidden_key_of_a_large_store_ends_the_server_and_is_back_at_the_next_start(tmp_path):
    path = tmp_path / "data"
    bulk_load(path, ((b"/k/%d" % i, b"v") for i in range(_ROWS_AT_START + 10)))
    opened = open_store(path)
    with opened.index.env.begin(write=True) as txn:
        assert txn.delete(encode_key(2, b"7"), db=opened.index.tables[b"nodes"])
    opened.close()
    server = Server(path).start()
    try:
        assert server.wait() == TRY_AGAIN
        assert "the table nodes has 10010 rows, expected 10011" in server.stderr
        server.start()
        assert server.client().get("/k/7").json["node"]["value"] == "v"
        assert log_text("the index is complete") not in server.stderr
    finally:
        server.stop()


def test_a_fatal_signal_is_written_beside_the_index(tmp_path):
    script = "import os; from pathlib import Path; from kvd.crash_file import CrashFile\n"
    script += "CrashFile().watch(Path('.')); os.abort()"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert ended.returncode < 0
    assert "Fatal Python error: Aborted" in (tmp_path / "CRASH").read_text()
