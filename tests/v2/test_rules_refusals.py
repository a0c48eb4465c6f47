"""Commands that are refused: codes, causes, and the order of checks."""

import pytest

from kvd.v2.commands import (
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Update,
)

REFUSALS = {
    # The root
    "set root": (Set(b"/", b"v"), 107, b"/"),
    "set root as directory": (Set(b"/", b"", dir=True), 107, b"/"),
    "create root": (Create(b"/", b"v"), 107, b"/"),
    "update root": (Update(b"/", b"v"), 107, b"/"),
    "swap root": (CompareAndSwap(b"/", b"v", b"x", 0), 107, b"/"),
    "delete root": (Delete(b"/", recursive=True), 107, b"/"),
    "compare and delete root": (CompareAndDelete(b"/", b"x", 0), 102, b""),
    # A file among the parents: the first one
    "set below a file": (Set(b"/f/x/y", b"v"), 104, b"/f"),
    "set directory below a file": (Set(b"/d/f/x", b"", dir=True), 104, b"/d/f"),
    "create below a file": (Create(b"/d/f/x/y", b"v"), 104, b"/d/f"),
    "post to a file": (CreateInOrder(b"/f", b"v"), 104, b"/f"),
    "post below a file": (CreateInOrder(b"/f/x", b"v"), 104, b"/f"),
    "update below a file": (Update(b"/f/x", b"v"), 104, b"/f"),
    "swap below a file": (CompareAndSwap(b"/f/x", b"v", b"x", 0), 104, b"/f"),
    "delete below a file": (Delete(b"/f/x", recursive=True), 104, b"/f"),
    "compare and delete below a file": (CompareAndDelete(b"/f/x", b"x", 0), 104, b"/f"),
    # Nothing there: the first component that is missing
    "update a missing key": (Update(b"/x", b"v"), 100, b"/x"),
    "update below a missing directory": (Update(b"/x/y/z", b"v"), 100, b"/x"),
    "swap a missing key": (CompareAndSwap(b"/d/x/y", b"v", b"x", 0), 100, b"/d/x"),
    "delete a missing key": (Delete(b"/d/x"), 100, b"/d/x"),
    "delete a missing directory": (Delete(b"/x/y", dir=True), 100, b"/x"),
    "delete a missing tree": (Delete(b"/x/y", recursive=True), 100, b"/x"),
    "compare and delete a missing key": (CompareAndDelete(b"/d/x", b"x", 0), 100, b"/d/x"),
    # A directory where a file is needed
    "set a directory": (Set(b"/d", b"v"), 102, b"/d"),
    "set a directory as one": (Set(b"/e", b"", dir=True), 102, b"/e"),
    "update a directory's value": (Update(b"/d", b"v"), 102, b"/d"),
    "swap a directory": (CompareAndSwap(b"/d", b"v", b"x", 0), 102, b"/d"),
    "delete a directory like a file": (Delete(b"/e"), 102, b"/e"),
    "compare and delete a directory": (CompareAndDelete(b"/e", b"x", 0), 102, b"/e"),
    # Something where nothing may be
    "create a file again": (Create(b"/f", b"v"), 105, b"/f"),
    "create over a directory": (Create(b"/d", b"v"), 105, b"/d"),
    # Directories with children
    "delete a directory with a child": (Delete(b"/d", dir=True), 108, b"/d"),
    "delete a directory with a hidden child": (Delete(b"/hid", dir=True), 108, b"/hid"),
    # Comparisons
    "swap another value": (CompareAndSwap(b"/f", b"v", b"x", 0), 101, b"[x != 1]"),
    "delete another value": (CompareAndDelete(b"/f", b"x", 0), 101, b"[x != 1]"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_its_code_and_cause_and_changes_nothing(space, case):
    command, code, cause = REFUSALS[case]
    assert space.refused(command) == (code, cause)


@pytest.mark.parametrize("command", [CompareAndSwap, CompareAndDelete])
@pytest.mark.parametrize(
    ("prev_value", "prev_index", "cause"),
    [
        (b"zz", 0, b"[zz != 1]"),
        (None, 1, b"[1 != 6]"),
        (b"1", 1, b"[1 != 6]"),
        (b"zz", 6, b"[zz != 1]"),
        (b"zz", 7, b"[zz != 1] [7 != 6]"),
        (b"\xff", 2**64 - 1, b"[\xff != 1] [18446744073709551615 != 6]"),
    ],
)
def test_a_failed_comparison_names_just_what_differs(space, command, prev_value, prev_index, cause):
    value = (b"new",) if command is CompareAndSwap else ()
    assert space.refused(command(b"/f", *value, prev_value, prev_index)) == (101, cause)


def test_a_failed_comparison_shows_no_more_than_the_beginning_of_large_values(space):
    most = 64 << 10
    space.do(Set(b"/large", b"v" * most))
    shown = b"[%b != %b]" % (b"w" * most, b"v" * most)
    assert space.refused(CompareAndSwap(b"/large", b"", b"w" * most, 0)) == (101, shown)
    space.do(Set(b"/large", b"v" * (most + 1)))
    cause = b"[%b... != %b...]" % (b"w" * most, b"v" * most)
    assert space.refused(CompareAndSwap(b"/large", b"", b"w" * (10 << 20), 0)) == (101, cause)


def test_a_comparison_with_an_empty_value_shows_it_as_nothing(space):
    space.do(Set(b"/f", b""))
    assert space.refused(CompareAndSwap(b"/f", b"v", b"x", 0)) == (101, b"[x != ]")


def test_the_root_is_refused_before_anything_else_is_looked_at(space):
    assert space.refused(CompareAndSwap(b"/", b"", None, 1)) == (107, b"/")


def test_a_missing_key_is_refused_before_its_conditions(space):
    assert space.refused(CompareAndSwap(b"/x", b"", b"zz", 1)) == (100, b"/x")
