"""sums.py: no row of a table can be missing, old or there twice without another sum."""

from itertools import permutations
from zlib import crc32

import pytest

from kvd.storage.format.sums import (
    APPLIED_KEY,
    ONE,
    Scanned,
    id_sum,
    meta_sum,
    row_sum,
    sum_of,
)


def row(key: bytes, value: bytes) -> tuple[bytes, bytes]:
    return key, crc32(key + value).to_bytes(4, "little") + value


ROWS = [row(b"a", b"1"), row(b"b", b"2"), row(b"c", b"")]


def test_a_sum_is_that_of_the_rows_in_any_order():
    expected = sum(row_sum(value) for _, value in ROWS)
    assert {sum_of(b"nodes", rows) for rows in permutations(ROWS)} == {expected}
    assert expected // ONE == len(ROWS)
    assert sum_of(b"nodes", []) == 0


@pytest.mark.parametrize(
    "others",
    [ROWS[1:], [*ROWS, ROWS[0]], [row(b"a", b"0"), *ROWS[1:]], [row(b"d", b"1"), *ROWS[1:]]],
    ids=["missing", "twice", "old", "of another key"],
)
def test_other_rows_have_another_sum(others):
    assert sum_of(b"nodes", others) != sum_of(b"nodes", ROWS)


def test_rows_of_garbage_count_by_their_keys():
    ids = [number.to_bytes(8, "big") for number in (2, 3, 500)]
    assert sum_of(b"garbage", [(key, b"") for key in ids]) == sum(map(id_sum, ids))
    assert sum_of(b"garbage", [(key, b"") for key in ids[1:]]) != sum(map(id_sum, ids))


def test_rows_of_meta_count_but_the_one_that_holds_the_sums():
    assert meta_sum(APPLIED_KEY, b"whatever") == 0
    assert meta_sum(b"name", b"1") != meta_sum(b"name", b"2")
    assert meta_sum(b"name", b"1") != meta_sum(b"other", b"1")
    assert meta_sum(b"name", b"1") // ONE == 1


def test_a_scan_has_passed_nothing_at_first():
    scanned = Scanned()
    assert (scanned.nodes_until, scanned.ttl_until, scanned.nodes, scanned.ttl) == (b"", b"", 0, 0)
