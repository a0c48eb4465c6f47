"""Three-way merges: a change of one side is taken, equal ones are one, others are a conflict."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kvd.ctl.verbs.merge import has_marks, merge

TEXT = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "d\n", "\n"]), max_size=8).map("".join)


@settings(max_examples=40)
@given(TEXT, TEXT)
def test_a_change_of_one_side_is_taken(before, after):
    assert merge(before, after, before) == (after, True)
    assert merge(before, before, after) == (after, True)
    assert merge(before, after, after) == (after, True)


@settings(max_examples=40)
@given(TEXT, TEXT, TEXT)
def test_both_orders_agree(before, yours, theirs):
    one, other = merge(before, yours, theirs), merge(before, theirs, yours)
    assert one.is_clean == other.is_clean
    assert one.text == other.text or not one.is_clean
    assert has_marks(one.text) != one.is_clean


def test_changes_apart_are_both_taken():
    assert merge("1\n2\n3\n", "0\n1\n2\n3\n", "1\n2\n3\n4") == ("0\n1\n2\n3\n4", True)


def test_a_conflict_shows_all_three():
    assert merge("1\nb\n3", "1\nm\n3", "1\nt\n3") == (
        "1\n<<<<<<< yours\nm\n||||||| before\nb\n=======\nt\n>>>>>>> theirs\n3",
        False,
    )
