"""Expirations and what is left of removed directories: order, rows, slices."""

import pytest

from kvd.storage.format.node import Node
from kvd.storage.format.records import Kind
from tests.support.tree import LONG, delete, mkdir, names, set_


def test_what_is_due_comes_in_the_order_of_expiration(tree):
    tree.do(
        *(set_(b"/c", b"", 30), set_(b"/a", b"", 10), set_(b"/d/b", b"", 20)),
        *(mkdir(b"/e", 15), set_(b"/later", b"", 31), set_(b"/never")),
    )
    assert tree.first_due_ns() == 10
    txn = tree.begin()
    assert [path for path, _ in txn.due(30, 100)[0]] == [b"/a", b"/e", b"/d/b", b"/c"]
    assert [path for path, _ in txn.due(30, 2)[0]] == [b"/a", b"/e"]
    assert txn.due(9, 100)[0] == []
    assert dict(txn.due(10, 100)[0]) == {b"/a": Node(b"", 3, 3, 10)}
    assert txn.due(30, 100)[1] == 31
    assert txn.due(30, 2)[1] == 20
    txn.end()


def test_a_changed_ttl_leaves_no_row_of_the_old_one(tree):
    tree.do(set_(b"/a", b"1", 10))
    tree.do(set_(b"/a", b"1", 20))
    assert tree.rows()["ttl"] == 1
    assert tree.first_due_ns() == 20
    tree.do(set_(b"/a", b"1"))
    assert tree.rows()["ttl"] == 0
    tree.do(set_(b"/a", b"1", 30), (Kind.EXPIRE, b"/a"))
    assert tree.rows()["ttl"] == 0
    assert tree.first_due_ns() is None


@pytest.mark.parametrize("again", [False, True], ids=["gone", "made again"])
def test_what_hangs_below_a_removed_directory_is_never_due(tree, again):
    tree.do(set_(b"/d/e/a", b"", 10), set_(b"/d/b", b"", 20), mkdir(b"/d/e/f", 15), set_(b"/k"))
    tree.do(delete(b"/d"))
    if again:
        tree.do(set_(b"/d/e/a", b"", 25), set_(b"/d/b", b"", 20))
    tree.flush()
    txn = tree.begin()
    assert [path for path, _ in txn.due(100, 100)[0]] == ([b"/d/b", b"/d/e/a"] if again else [])
    # Such rows go when they are met.
    txn.end()
    assert tree.rows()["ttl"] == (2 if again else 0)


def test_a_row_of_a_long_name_below_a_removed_directory_is_not_taken_for_the_new_one(tree):
    path = b"/d/" + LONG * 2
    tree.do(set_(path, b"old", 10))
    tree.do(delete(b"/d"), set_(path, b"new", 20))
    txn = tree.begin()
    assert txn.due(15, 100)[0] == []
    assert [node.value for _, node in txn.due(20, 100)[0]] == [b"new"]
    txn.end()


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_reclaiming_in_slices_leaves_nothing_behind(tree, limit):
    for i in range(40):
        tree.do(set_(b"/d/%d/%d/f" % (i % 4, i), b"v", i % 3 * 100), set_(b"/keep/%d" % i))
        tree.do(mkdir(b"/d/%d/empty%d" % (i % 4, i)), set_(b"/d/" + LONG * 2 + b"%d" % i))
    before = tree.rows()
    tree.do(delete(b"/d"))
    assert tree.rows()["nodes"] == before["nodes"] - 1
    assert tree.state.has_garbage
    slices = tree.reclaim(limit)
    assert slices >= 160 // limit
    rows = tree.rows()
    assert (rows["nodes"], rows["ttl"], rows["garbage"]) == (41, 0, 0)
    assert not tree.state.has_garbage
    assert len(names(tree.state, b"/keep")) == 40


def test_reclaiming_leaves_other_expirations_alone(tree):
    tree.do(set_(b"/d/a", b"", 10), set_(b"/k/a", b"", 10))
    tree.do(delete(b"/d"))
    tree.reclaim(10)
    txn = tree.begin()
    assert [path for path, _ in txn.due(10, 10)[0]] == [b"/k/a"]
    txn.end()
