"""state.py: what is committed, in memory, in the index, and while that takes nothing."""

import pytest

from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import Position
from kvd.storage.format.node import ROOT, CorruptIndex, Node, Obstacle
from kvd.storage.format.records import Document, Kind, LoggedSetting, Term
from tests.support.tree import LONG, NOW_NS, apply, delete, mkdir, names, set_, update_dir


def test_an_empty_tree_is_a_root_without_indexes(tree):
    view = tree.state
    assert view.find(b"/") == ROOT == Node(None, 0, 0, 0, 1)
    assert not view.has_children(ROOT.dir_id)
    assert view.find(b"/a") is None


def test_a_file_is_found_with_the_directories_that_it_made(tree):
    tree.do(set_(b"/a/b/c", b"1", 17))
    view = tree.state
    assert view.find(b"/a/b/c") == Node(b"1", 2, 2, 17)
    for path in (b"/a", b"/a/b"):
        assert view.find(path)[:4] == (None, 2, 2, 0)
    assert view.has_children(1)
    assert view.find(b"/a/b/c/d") is None
    assert view.find(b"/a/c") is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/x", Obstacle(False, b"/x")),
        (b"/x/y/z", Obstacle(False, b"/x")),
        (b"/d/x", Obstacle(False, b"/d/x")),
        (b"/d/x/y", Obstacle(False, b"/d/x")),
        (b"/d/f/x", Obstacle(True, b"/d/f")),
        (b"/d/f/x/y", Obstacle(True, b"/d/f")),
        (b"/" + LONG * 2 + b"/x/y", Obstacle(True, b"/" + LONG * 2 + b"/x")),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_an_obstacle_is_the_first_missing_component_or_the_file_in_the_way(tree, path, expected):
    tree.do(set_(b"/d/f"), set_(b"/" + LONG * 2 + b"/x"))
    view = tree.state
    assert view.find(path) is None
    assert view.obstacle(path) == expected


def test_children_come_in_the_byte_order_of_their_names(tree):
    siblings = [
        *(b"a", b"a-", b"aa", b"B", b"\xff", b"\x01", b"10", b"9", b"_hidden"),
        *(LONG, LONG + b"a", LONG + b"b", LONG[:-1], LONG * 3, b"n", b"m", b"z" * 600, b"0" * 481),
        LONG[:440] + b"a" * 100,
    ]
    tree.do(*(set_(b"/d/" + name) for name in siblings))
    assert names(tree.state, b"/d") == sorted(siblings)


SIBLINGS = [
    *(b"a", b"a-", b"aa", b"B", b"\xff", b"\x01", b"_hidden", b"n", b"m", b"z" * 600, b"0" * 481),
    *(LONG, LONG + b"a", LONG + b"b", LONG[:-1], LONG * 3, LONG[:440] + b"a" * 100),
]
PLACES = [b"", b"a", b"a\0", b"b", b"\xff\xff", LONG[:440], LONG[:480], LONG * 2, b"zz", *SIBLINGS]


@pytest.mark.parametrize("first", PLACES, ids=lambda name: f"{name[:8]!r}-{len(name)}")
@pytest.mark.parametrize("only_short", [True, False], ids=["short names", "all names"])
def test_children_are_listed_from_any_name_on(tree, first, only_short):
    siblings = [name for name in SIBLINGS if len(name) <= 480 or not only_short]
    ended = [b"e", b"e" * 500] if not only_short else [b"e"]
    tree.do(*(set_(b"/d/" + name) for name in siblings), set_(b"/e/x"), set_(b"/c/x"))
    tree.do(*(set_(b"/d/" + name, expiration_ns=NOW_NS) for name in ended))
    dir_id = tree.state.find(b"/d").dir_id
    for view, there in (
        (tree.state, sorted(siblings + ended)),
        (tree.state.at(NOW_NS), sorted(siblings)),
    ):
        wanted = [name for name in there if name >= first]
        assert [name for name, _ in view.children(dir_id, first)] == wanted
        for limit in (0, 1, 3, 100):
            assert view.names(dir_id, first, limit) == wanted[:limit]


def test_long_names_that_begin_alike_are_different_nodes(tree):
    one, other = (b"/" + LONG * 2 + ending for ending in (b"1", b"2"))
    tree.do(set_(one, b"1"), set_(other, b"2"))
    assert tree.state.find(one).value == b"1"
    assert tree.state.find(other).value == b"2"
    assert tree.state.find(b"/" + LONG * 2 + b"3") is None
    tree.do(delete(one))
    assert tree.state.find(one) is None
    assert tree.state.find(other).value == b"2"


def test_a_directory_lists_its_own_children_only(tree):
    tree.do(set_(b"/a/x"), set_(b"/a/b/y"), set_(b"/ab/z"), set_(b"/a-/z"))
    assert names(tree.state, b"/a") == [b"b", b"x"]
    assert names(tree.state, b"/") == [b"a", b"a-", b"ab"]


def test_a_path_of_many_levels_is_made_found_and_removed(tree):
    path = b"/d" * 2000
    tree.do(set_(path + b"/f"))
    assert tree.state.find(path + b"/f").value == b"v"
    assert tree.state.obstacle(path + b"/g") == Obstacle(False, path + b"/g")
    tree.do(delete(b"/d"))
    tree.reclaim(100)
    assert tree.rows()["nodes"] == 0


def test_a_set_makes_a_new_node_and_returns_the_old_one(tree):
    tree.do(set_(b"/a", b"1", 50))
    (event,) = tree.do(set_(b"/a", b"2"))
    assert event.prev == Node(b"1", 2, 2, 50)
    assert tree.state.find(b"/a") == Node(b"2", 3, 3)


def test_a_file_becomes_a_directory(tree):
    tree.do(set_(b"/d/a", b"1", 50))
    (event,) = tree.do(mkdir(b"/d/a"))
    assert event.prev == Node(b"1", 2, 2, 50)
    assert tree.state.find(b"/d/a")[:4] == (None, 3, 3, 0)
    assert tree.first_due_ns() is None
    tree.do(set_(b"/d/a/b"))
    assert names(tree.state, b"/d/a") == [b"b"]


def test_an_update_of_a_directory_changes_its_ttl_only(tree):
    tree.do(set_(b"/d/a"))
    before = tree.state.find(b"/d")
    tree.do(update_dir(b"/d", 99))
    assert tree.state.find(b"/d") == before._replace(expiration_ns=99)
    assert names(tree.state, b"/d") == [b"a"]
    assert tree.first_due_ns() == 99


def test_a_directory_that_is_removed_and_made_again_in_one_batch_is_empty(tree):
    tree.do(set_(b"/d/e/old", b"1", 50))
    assert tree.state.find(b"/d/e/old")  # remembers the directories' ids
    tree.do(delete(b"/d"), set_(b"/d/e/new"))
    view = tree.state
    assert names(view, b"/d/e") == [b"new"]
    assert view.find(b"/d/e/old") is None
    assert view.find(b"/d")[:3] == (None, 4, 4)
    tree.reclaim(1)
    assert tree.rows() | {"events": 0} == {
        "nodes": 3, "ttl": 0, "events": 0, "garbage": 0, "meta": 1, "entries": 0,
    }  # fmt: skip


def test_a_directory_that_is_made_again_twice_in_one_batch_is_the_last_one(tree):
    tree.do(
        *(set_(b"/d/a"), delete(b"/d"), set_(b"/d/b"), delete(b"/d")),
        *(set_(b"/d", b"file"), delete(b"/d"), set_(b"/d/c")),
    )
    assert names(tree.state, b"/d") == [b"c"]
    tree.reclaim(100)
    assert tree.rows()["nodes"] == 2


def test_ids_of_directories_are_never_given_twice(tree):
    seen = set()
    for _ in range(5):
        tree.do(mkdir(b"/d"))
        seen.add(tree.state.find(b"/d").dir_id)
        tree.do(delete(b"/d"))
    assert len(seen) == 5


def test_a_pending_batch_is_invisible(tree):
    tree.do(set_(b"/d/a", b"1"))
    txn = tree.begin()
    apply(txn, *set_(b"/d/a", b"2"))
    apply(txn, *set_(b"/e/b"))
    assert tree.state.find(b"/d/a").value == b"1"
    assert tree.state.find(b"/e") is None
    assert txn.find(b"/d/a").value == b"2"
    tree.commit(txn)
    assert tree.state.find(b"/d/a").value == b"2"


def test_a_batch_that_is_dropped_leaves_no_trace(tree):
    tree.do(set_(b"/d/e/a", b"1"))
    tree.do(set_(b"/ends", expiration_ns=20))
    assert tree.state.due_ns == 20
    remembered, applied = dict(tree.state.directories), tree.applied
    txn = tree.begin()
    apply(txn, *delete(b"/d"))
    apply(txn, *set_(b"/d/e/b", expiration_ns=10))
    assert txn.due_ns == 10
    apply(txn, *set_(b"/new/x"))
    assert txn.find(b"/d/e/b")
    txn.end()
    assert tree.state.directories == remembered
    assert tree.state.due_ns == 20
    assert not tree.state.has_garbage
    assert tree.applied == applied
    assert names(tree.state, b"/d/e") == [b"a"]
    assert tree.state.find(b"/new") is None
    assert tree.state.find(b"/d/e/a").value == b"1"
    # The ids that it gave are given again, and lead where they should.
    tree.do(set_(b"/other/x"))
    assert tree.state.find(b"/new/x") is None
    assert names(tree.state, b"/other") == [b"x"]


def test_a_directory_known_from_a_dropped_batch_is_not_remembered(tree):
    txn = tree.begin()
    apply(txn, *set_(b"/a/x"))
    txn.end()
    tree.do(set_(b"/b/y"))  # has got the id that /a would have had
    assert tree.state.find(b"/a/y") is None


def test_a_document_is_what_was_logged_last(tree):
    first, second = (Document(Kind.AUTH, "user", "al", text, b"hash") for text in (b"1", b"2"))
    for document in (first, second):
        txn = tree.begin()
        assert txn.apply(document, NOW_NS) is None
        assert txn.document("user", "al") == document
        tree.commit(txn)
        assert tree.state.document("user", "al") == document
        assert tree.state.document("role", "al") is None
    txn = tree.begin()
    for _ in range(2):  # the second removes what is not there
        txn.apply(second._replace(content=None, secret=None), NOW_NS)
    tree.commit(txn)
    assert tree.state.document("user", "al") is None
    assert tree.state.documents() == []


def test_documents_are_listed_by_their_names(tree):
    names = ["", "b", "a", "a\0", "\N{SNOWMAN}", "n" * 1000, "n" * 999]
    txn = tree.begin()
    for what in ("user", "role", "us"):
        for name in names:
            txn.apply(Document(Kind.MEMBER, what, name, name.encode(), None), NOW_NS)
    tree.commit(txn)
    for what in ("user", "role", "us"):
        found = tree.state.documents(what)
        assert [(document.what, document.name) for document in found] == [
            (what, n) for n in sorted(names)
        ]
        assert [document.content for document in found] == [n.encode() for n in sorted(names)]
    assert len(tree.state.documents()) == 3 * len(names)
    assert tree.state.documents("nothing") == []


def test_documents_of_a_dropped_batch_are_not_there(tree):
    txn = tree.begin()
    txn.apply(Document(Kind.AUTH, "user", "al", b"{}", None), NOW_NS)
    txn.end()
    assert tree.state.document("user", "al") is None


def test_positions_count_records_of_all_kinds_and_indexes_only_changes(tree):
    txn = tree.begin()
    txn.apply(Term(5), NOW_NS)
    txn.apply(LoggedSetting("history_limit", 9), NOW_NS)
    txn.apply(Document(Kind.AUTH, "user", "al", b"{}", b"hash"), NOW_NS)
    apply(txn, *set_(b"/a"))
    tree.commit(txn)
    assert (tree.applied.pos, tree.applied.index, tree.applied.term) == (4, 2, 5)
    assert tree.state.flushed().applied.index == (1 if tree.way == "refused" else 2)


def test_an_unknown_setting_changes_nothing(tree):
    txn = tree.begin()
    txn.apply(LoggedSetting("of a later version", 9), NOW_NS)
    tree.commit(txn)
    assert tree.applied._replace(pos=0, seq=0, time_ns=0) == Applied()


def test_every_flipped_bit_of_applied_is_refused():
    applied = Applied(1, b"12345678", 3, 4, 5, 6, 7, 8, 9, Position(10, 11, 12, 13))
    data = applied.encode()
    assert Applied.decode(data) == applied
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptIndex):
            Applied.decode(bytes(flipped))
    for damaged in (None, b"", data[:-1], data + b"\0"):
        with pytest.raises(CorruptIndex):
            Applied.decode(damaged)
