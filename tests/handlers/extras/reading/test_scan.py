"""Scans and listings with extras, slice by slice, on a store that changes in between."""

from random import Random

import pytest

from kvd.v2.commands import Create, Delete
from tests.support.stores import write
from tests.support.walks import make, walk_all, walked


def test_a_walk_comes_by_everything_in_the_order_of_a_listing(store):
    make(store, "/d/a/x", "/d/a/y/z", "/d/b", "/d/c/_h/i", "/d/c/j", "/d/_h/k", "/e")
    order = [b"/d/a", b"/d/a/x", b"/d/a/y", b"/d/a/y/z", b"/d/b", b"/d/c", b"/d/c/j"]
    assert walked(store, walk_all()) == order
    hidden = [b"/d/_h", b"/d/_h/k", *order[:6], b"/d/c/_h", b"/d/c/_h/i", b"/d/c/j"]
    assert walked(store, walk_all(hidden=True)) == hidden
    assert walked(store, walk_all(recursive=False)) == [b"/d/a", b"/d/b", b"/d/c"]
    assert walked(store, walk_all(prefix=b"a")) == order[:4]
    for place, path in enumerate(hidden):
        after = path[3:].split(b"/")
        assert walked(store, walk_all(hidden=True, after=after)) == hidden[place + 1 :]


@pytest.mark.parametrize(
    ("after", "rest"),
    [
        ("a/x/gone", ["/d/a/y", "/d/a/y/z", "/d/b"]),
        ("a/0", ["/d/a/x", "/d/a/y", "/d/a/y/z", "/d/b"]),
        ("aa/never/was", ["/d/b"]),
        ("a/y/z", ["/d/b"]),
        ("z", []),
        ("_h/k", ["/d/a", "/d/a/x", "/d/a/y", "/d/a/y/z", "/d/b"]),
    ],
)
def test_a_walk_goes_on_behind_what_may_be_gone(store, after, rest):
    make(store, "/d/a/x", "/d/a/y/z", "/d/b", "/d/_h/k", "/d/_h/l")
    walk = walk_all(after=after.encode().split(b"/"))
    assert walked(store, walk) == [path.encode() for path in rest]


def test_a_directory_that_is_removed_meanwhile_is_left(store):
    make(store, *(f"/d/a/{n:03}" for n in range(200)), *(f"/d/b/{n}" for n in range(3)))

    def remove(slices: int) -> None:
        if slices == 2:
            write(store, Delete(b"/d/a", dir=True, recursive=True))

    found = walked(store, walk_all(), remove)
    assert found[-4:] == [b"/d/b", b"/d/b/0", b"/d/b/1", b"/d/b/2"]
    assert len(found) < 200


@pytest.mark.parametrize("as_file", [False, True])
def test_another_of_the_same_name_is_not_taken_for_it(store, as_file):
    make(store, *(f"/d/a/{n:03}" for n in range(100)), "/d/b")

    def replace(slices: int) -> None:
        if slices == 2:
            write(store, Delete(b"/d/a", dir=True, recursive=True))
            make(store, "/d/a" if as_file else "/d/a/999")

    found = walked(store, walk_all(), replace)
    assert found[-1] == b"/d/b"
    assert b"/d/a/999" not in found


def test_all_above_may_be_removed(store):
    make(store, *("/d" + "/x" * depth + f"/{n}" for depth in range(1, 6) for n in range(40)))
    ended: list[int] = []

    def remove(slices: int) -> None:
        if slices == 7:
            write(store, Delete(b"/d", dir=True, recursive=True))
            ended.append(slices)

    found = walked(store, walk_all(), remove)
    assert ended
    assert len(found) < 200


@pytest.mark.parametrize("seed", range(5))
def test_what_is_there_all_the_time_is_visited_once(store, seed):
    dice = Random(seed)
    names = [f"{n:02}" for n in range(30)]
    lasting = {f"/d/{a}/{b}" for a in names[::3] for b in names[::2]}
    make(store, *lasting)
    ever = {path.encode() for path in lasting}

    def disturb(_: int) -> None:
        for _ in range(5):
            path = f"/d/{dice.choice(names)}/{dice.choice(names)}"
            if path not in lasting:
                if dice.random() < 0.6:
                    make(store, path)
                    ever.add(path.encode())
                else:
                    write(store, Delete(path.encode()))
        spare = f"/d/{dice.choice([n for n in names if n not in names[::3]])}"
        if dice.random() < 0.3:
            write(store, Delete(spare.encode(), dir=True, recursive=True))

    found = walked(store, walk_all(), disturb)
    assert len(found) == len(set(found))
    assert found == sorted(found, key=lambda path: path.split(b"/"))
    assert {path.encode() for path in lasting} <= set(found)
    assert {path for path in found if path.count(b"/") == 3} <= ever


def test_a_deep_tree_takes_no_more_memory_for_its_depth(store):
    depth = 2000
    write(store, Create(b"/d" + b"/long-name" * depth, b"v"))
    walk = walk_all()
    assert len(walked(store, walk)) == depth
