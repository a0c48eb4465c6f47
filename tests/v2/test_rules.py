"""kvd/v2/rules.py: every rule of the key space, on a state as plain as a dict."""

import pytest

from kvd.storage.format.node import Node
from kvd.storage.format.records import Change, Kind
from kvd.v2.commands import (
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Update,
)
from kvd.v2.errors import ApiError
from kvd.v2.rules import EXPIRATION_NS_MAX, existing, expire
from tests.support.space import NOW_NS, SECOND_NS, Space


def test_the_ready_made_vectors_in_their_order():
    """Section 14.1, with i = 1 and as far as it is about rules."""
    space = Space()
    i = space.model.index
    assert space.do(Set(b"/a", b"1")) == Change(Kind.SET, i + 1, b"/a", b"1", False, i + 1)
    assert space.prev is None
    assert space.do(Set(b"/a", b"2")) == Change(Kind.SET, i + 2, b"/a", b"2", False, i + 2)
    assert space.prev == Node(b"1", i + 1, i + 1)
    assert space.do(Update(b"/a", b"3")) == Change(Kind.UPDATE, i + 3, b"/a", b"3", False, i + 2)
    swap = CompareAndSwap(b"/a", b"4", b"x", 0)
    assert space.refused(swap) == (101, b"[x != 3]")
    assert space.refused(swap._replace(prev_index=1)) == (101, b"[x != 3] [1 != %d]" % (i + 3))
    change = space.do(CompareAndSwap(b"/a", b"4", None, i + 3))
    assert change == Change(Kind.COMPARE_AND_SWAP, i + 4, b"/a", b"4", False, i + 2)
    assert space.refused(Set(b"/a/b", b"1")) == (104, b"/a")
    assert space.refused(Create(b"/a", b"")) == (105, b"/a")
    assert space.do(Set(b"/a", b"", dir=True)) == Change(Kind.SET, i + 5, b"/a", None, True, i + 5)
    assert space.prev == Node(b"4", i + 2, i + 4)
    assert space.refused(Set(b"/a", b"", dir=True)) == (102, b"/a")
    space.do(Set(b"/a/x/y", b"1"))
    assert space.model.find(b"/a/x")[:3] == (None, i + 6, i + 6)
    assert space.model.find(b"/a/x/y") == Node(b"1", i + 6, i + 6)
    assert space.refused(Delete(b"/a")) == (102, b"/a")
    assert space.refused(Delete(b"/a", dir=True)) == (108, b"/a")
    assert space.refused(CompareAndDelete(b"/a", None, 1)) == (102, b"/a")
    assert space.do(Delete(b"/a", recursive=True)) == Change(
        Kind.DELETE, i + 7, b"/a", None, True, i + 5
    )
    assert space.prev[:3] == (None, i + 5, i + 5)
    assert space.refused(Delete(b"/a")) == (100, b"/a")
    for flags in ({}, {"dir": True}, {"recursive": True}):
        assert space.refused(Delete(b"/", **flags)) == (107, b"/")
    assert space.refused(CompareAndDelete(b"/", b"x", 0)) == (102, b"")
    assert space.refused(Set(b"/", b"")) == (107, b"/")
    change = space.do(CreateInOrder(b"/", b"v"))
    assert change.key == b"/%020d" % (i + 8)
    assert (change.kind, change.created_index) == (Kind.CREATE, i + 8)
    assert space.do(Set(b"/k", b"1", ttl_s=0)).expiration_ns == NOW_NS


@pytest.mark.parametrize(("prev_value", "prev_index"), [(b"1", 0), (None, 6), (b"1", 6)])
def test_conditions_that_hold_let_a_swap_and_a_removal_pass(space, prev_value, prev_index):
    swapped = space.do(CompareAndSwap(b"/f", b"new", prev_value, prev_index))
    assert swapped == Change(Kind.COMPARE_AND_SWAP, 7, b"/f", b"new", False, 2)
    removed = space.do(CompareAndDelete(b"/f", b"new", 7))
    assert removed == Change(Kind.COMPARE_AND_DELETE, 8, b"/f", None, False, 2)
    assert space.prev == Node(b"new", 2, 7)


def test_a_set_makes_a_new_node(space):
    assert space.do(Set(b"/d/f", b"3")) == Change(Kind.SET, 7, b"/d/f", b"3", False, 7)
    assert space.prev == Node(b"two", 3, 3, NOW_NS + 100 * SECOND_NS)


def test_a_set_of_a_directory_drops_the_value(space):
    assert space.do(Set(b"/n", b"ignored", dir=True)).value is None


def test_a_file_becomes_a_directory_with_the_ttl_that_is_given(space):
    change = space.do(Set(b"/d/f", b"", dir=True, ttl_s=5))
    assert change == Change(Kind.SET, 7, b"/d/f", None, True, 7, NOW_NS + 5 * SECOND_NS)


@pytest.mark.parametrize("is_dir", [False, True])
def test_a_create_makes_all_that_is_missing(space, is_dir):
    change = space.do(Create(b"/n/m/k", b"v", is_dir, 5))
    value = None if is_dir else b"v"
    assert change == Change(Kind.CREATE, 7, b"/n/m/k", value, is_dir, 7, NOW_NS + 5 * SECOND_NS)
    assert space.model.find(b"/n/m")[:4] == (None, 7, 7, 0)


@pytest.mark.parametrize(
    ("key", "made"),
    [
        (b"/q", b"/q/00000000000000000007"),
        (b"/", b"/00000000000000000007"),
        (b"/d", b"/d/00000000000000000007"),
        (b"/hid/_x", b"/hid/_x/00000000000000000007"),
    ],
)
def test_a_post_is_named_by_its_index(space, key, made):
    for number, is_dir in enumerate((False, True)):
        change = space.do(CreateInOrder(key, b"v", is_dir))
        assert change.key == made[:-1] + b"%d" % (7 + number)
        assert (change.kind, change.dir) == (Kind.CREATE, is_dir)


def test_an_update_keeps_the_index_of_creation_and_drops_the_ttl(space):
    assert space.do(Update(b"/d/f", b"3")) == Change(Kind.UPDATE, 7, b"/d/f", b"3", False, 3)
    assert space.model.find(b"/d/f") == Node(b"3", 3, 7)


def test_an_update_without_a_value_empties_a_file(space):
    assert space.do(Update(b"/f", b"", 50)).value == b""


def test_an_update_of_a_directory_changes_its_ttl_only(space):
    before = space.model.find(b"/d")
    change = space.do(Update(b"/d", b"", 50))
    assert change == Change(Kind.UPDATE, 7, b"/d", None, True, 3, NOW_NS + 50 * SECOND_NS)
    assert space.model.find(b"/d") == before._replace(expiration_ns=change.expiration_ns)
    space.do(Update(b"/d", b""))
    assert space.model.find(b"/d") == before


def test_a_swap_without_a_ttl_drops_it(space):
    assert space.do(CompareAndSwap(b"/d/f", b"", b"two", 0)) == Change(
        Kind.COMPARE_AND_SWAP, 7, b"/d/f", b"", False, 3
    )


@pytest.mark.parametrize(
    ("command", "is_dir"),
    [
        (Delete(b"/f"), False),
        (Delete(b"/f", dir=True), False),
        (Delete(b"/f", recursive=True), False),
        (Delete(b"/e", dir=True), True),
        (Delete(b"/e", recursive=True), True),
    ],
)
def test_a_delete_takes_what_its_flags_allow(space, command, is_dir):
    key = command.key
    created = space.model.find(key).created_index
    assert space.do(command) == Change(Kind.DELETE, 7, key, None, is_dir, created)
    assert space.model.find(key) is None


def test_a_recursive_delete_is_one_change(space):
    assert space.do(Delete(b"/d", recursive=True)).index == 7
    assert space.model.find(b"/d/f") is None


def test_a_refresh_keeps_the_value_and_is_marked(space):
    until = NOW_NS + 9 * SECOND_NS
    assert space.do(Set(b"/d/f", b"", ttl_s=9, refresh=True)) == Change(
        Kind.SET, 7, b"/d/f", b"two", False, 7, until, True
    )
    assert space.do(Update(b"/d/f", b"", 9, refresh=True)) == Change(
        Kind.UPDATE, 8, b"/d/f", b"two", False, 7, until, True
    )
    swap = CompareAndSwap(b"/d/f", b"", b"two", 8, 9, refresh=True)
    assert space.do(swap) == Change(
        Kind.COMPARE_AND_SWAP, 9, b"/d/f", b"two", False, 7, until, True
    )
    assert space.do(Update(b"/d", b"", 9, refresh=True)).refresh


@pytest.mark.parametrize(
    ("key", "code", "cause"),
    [
        (b"/x", 100, b"/x"),
        (b"/x/y", 100, b"/x"),
        (b"/f/y", 104, b"/f"),
        (b"/d", 102, b"/d"),
        (b"/", 107, b"/"),
    ],
)
def test_a_refresh_makes_nothing(space, key, code, cause):
    assert space.refused(Set(key, b"", ttl_s=9, refresh=True)) == (code, cause)


@pytest.mark.parametrize(
    ("ttl_s", "expiration_ns"),
    [
        (None, 0),
        (0, NOW_NS),
        (1, NOW_NS + SECOND_NS),
        ((EXPIRATION_NS_MAX - NOW_NS) // SECOND_NS, NOW_NS + 7_523_372_036 * SECOND_NS),
        ((EXPIRATION_NS_MAX - NOW_NS) // SECOND_NS + 1, 0),
        (9_999_999_999, 0),
        (2**64 - 1, 0),
    ],
)
def test_a_ttl_counts_from_now_and_beyond_2262_never_ends(space, ttl_s, expiration_ns):
    commands = [
        Set(b"/f", b"", ttl_s=ttl_s),
        Update(b"/f", b"", ttl_s),
        CompareAndSwap(b"/f", b"", b"", 0, ttl_s),
        Create(b"/new", b"", ttl_s=ttl_s),
        CreateInOrder(b"/new2", b"", ttl_s=ttl_s),
        Update(b"/d", b"", ttl_s),
    ]
    for command in commands:
        assert space.do(command).expiration_ns == expiration_ns


def test_an_expiry_is_a_change_like_a_removal(space):
    for path, is_dir, created in ((b"/d/f", False, 3), (b"/d", True, 3)):
        change = expire(path, space.model.find(path), space.model.index + 1)
        assert change == Change(Kind.EXPIRE, space.model.index + 1, path, None, is_dir, created)
        space.model.apply(change)


def test_a_read_finds_what_is_there(space):
    assert existing(space.model, b"/f").value == b"1"
    assert existing(space.model, b"/").value is None


@pytest.mark.parametrize(
    ("key", "code", "cause"),
    [(b"/aa/bb/cc", 100, b"/aa"), (b"/d/x", 100, b"/d/x"), (b"/f/g/h", 104, b"/f")],
)
def test_a_read_of_what_is_not_there_names_the_obstacle_and_the_index(space, key, code, cause):
    with pytest.raises(ApiError) as caught:
        existing(space.model, key, 77)
    assert (caught.value.code, caught.value.cause, caught.value.index) == (code, cause, 77)
