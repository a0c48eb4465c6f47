"""state.py: what is committed, in memory, in the index, and while that takes nothing."""

import lmdb
import pytest

from kvd.storage.format.applied import Applied
from kvd.storage.format.frame import Position
from kvd.storage.format.node import ROOT, CorruptIndex, Node, Obstacle, seal_node
from kvd.storage.format.records import Change, Entry, Kind, Setting, Term
from kvd.storage.index import state as state_module
from kvd.storage.index.environment import Index
from kvd.storage.index.index_view import IndexView
from kvd.storage.index.pending import Pending
from kvd.storage.index.state import BEHIND_FACTOR, FLUSH_RECORDS, State
from kvd.storage.replay import load

NOW_NS = 1_700_000_000_000_000_000
LONG = b"m" * 480


class Tree:
    """A state of its own, written to without a log.

    `way` says when the index is written to: by each scan, by each batch, or not but when asked for.
    """

    def __init__(self, path, way):
        self.index = Index.create(path)
        load(self.index, None)
        self.state = State(self.index)
        self.way = way
        self.refuses = way == "refused"

    def begin(self):
        return Pending(self.state)

    def commit(self, txn):
        place = Position(0, 0, 0, 0)
        txn.seq, txn.chain, txn.time_ns = self.applied.seq + 1, bytes(8), NOW_NS
        self.state.merge(txn, place)
        if self.way == "each batch":
            self.state.flush()

    @property
    def applied(self):
        return self.state.applied

    def do(self, *changes):
        """Perform changes, given without an index, as one batch."""
        txn = self.begin()
        events = [perform(txn, *change) for change in changes]
        self.commit(txn)
        return events

    def flush(self, **options):
        """Have the index take everything."""
        self.refuses = False
        self.state.flush(**options)
        self.refuses = self.way == "refused"

    def rows(self):
        """How many rows each table holds."""
        self.flush()
        with self.index.env.begin() as txn:
            return {
                name.decode(): txn.stat(table)["entries"]
                for name, table in self.index.tables.items()
            }

    def first_due_ns(self):
        self.flush()
        return self.state.flushed().first_due_ns()

    def reclaim(self, limit):
        """Reclaim in transactions of `limit` rows; return how many it took."""
        slices = 0
        while self.state.has_garbage:
            self.flush(free=limit)
            slices += 1
        return slices


def perform(txn, kind, path, value=None, expiration_ns=0):
    """Perform a change whose remaining fields follow from the state."""
    prev = txn.find(path)
    is_dir = value is None and kind not in (Kind.DELETE, Kind.EXPIRE)
    if kind in (Kind.DELETE, Kind.EXPIRE):
        is_dir = bool(prev.dir_id)
    created = prev.created_index if prev and kind != Kind.SET else txn.index + 1
    change = Change(kind, txn.index + 1, path, value, is_dir, created, expiration_ns)
    return txn.perform(change, NOW_NS)


def set_(path, value=b"v", expiration_ns=0):
    return Kind.SET, path, value, expiration_ns


def mkdir(path, expiration_ns=0):
    return Kind.SET, path, None, expiration_ns


def update_dir(path, expiration_ns):
    return Kind.UPDATE, path, None, expiration_ns


def delete(path):
    return Kind.DELETE, path


def names(view, path):
    return [name for name, _ in view.children(view.find(path).dir_id)]


@pytest.fixture(params=["each scan", "each batch", "refused"])
def tree(request, tmp_path, monkeypatch):
    tree = Tree(tmp_path / "index", request.param)

    def reach_commit():
        if tree.refuses:
            raise lmdb.MapFullError("no room")

    monkeypatch.setattr("kvd.storage.index.state.reach_commit", reach_commit)
    yield tree
    tree.state.end()
    tree.index.env.close()


# Finding


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


# Changing


def test_a_set_makes_a_new_node_and_tells_of_the_old_one(tree):
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


# A batch that is not merged


def test_a_pending_batch_is_invisible(tree):
    tree.do(set_(b"/d/a", b"1"))
    txn = tree.begin()
    perform(txn, *set_(b"/d/a", b"2"))
    perform(txn, *set_(b"/e/b"))
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
    perform(txn, *delete(b"/d"))
    perform(txn, *set_(b"/d/e/b", expiration_ns=10))
    assert txn.due_ns == 10
    perform(txn, *set_(b"/new/x"))
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
    perform(txn, *set_(b"/a/x"))
    txn.end()
    tree.do(set_(b"/b/y"))  # has got the id that /a would have had
    assert tree.state.find(b"/a/y") is None


# Expiration


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


# Freeing what was removed


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


# History


def indexes(view, first=0):
    return [event.change.index for event in view.events(first)]


def test_history_holds_the_newest_events(tree):
    events = [tree.do(set_(b"/a", b"%d" % i))[0] for i in range(1005)]
    assert indexes(tree.state) == list(range(7, 1007))
    assert indexes(tree.state, 1004) == [1004, 1005, 1006]
    assert list(tree.state.events(1007)) == []
    assert list(tree.state.events(0)) == events[5:]
    assert tree.applied.oldest_event == 7


@pytest.mark.parametrize("limit", [0, 1, 3, 10])
def test_the_history_limit_is_a_logged_setting(tree, limit):
    tree.do(*(set_(b"/a") for _ in range(20)))
    txn = tree.begin()
    assert txn.perform(Setting("history_limit", limit), NOW_NS) is None
    tree.commit(txn)
    assert indexes(tree.state) == list(range(22 - limit, 22))
    tree.do(set_(b"/a"))
    assert indexes(tree.state) == list(range(23 - limit, 23))
    assert tree.applied.history_limit == limit
    assert tree.applied.oldest_event == 23 - limit


def test_a_longer_history_begins_where_the_shorter_one_did(tree):
    txn = tree.begin()
    txn.perform(Setting("history_limit", 2), NOW_NS)
    tree.commit(txn)
    tree.do(*(set_(b"/a") for _ in range(5)))
    txn = tree.begin()
    txn.perform(Setting("history_limit", 100), NOW_NS)
    tree.commit(txn)
    tree.do(*(set_(b"/a") for _ in range(5)))
    assert indexes(tree.state) == list(range(5, 12))


def test_the_event_of_a_removed_directory_has_the_directory_before_it(tree):
    tree.do(set_(b"/d/a"))
    (event,) = tree.do(delete(b"/d"))
    assert event.prev[:3] == (None, 2, 2)
    (told,) = tree.state.events(3)
    assert told.change == event.change
    assert told.prev[:4] == event.prev[:4]
    assert told.prev.dir_id


# Entries beside the keys


def test_an_entry_is_what_was_logged_last(tree):
    first, second = (Entry(Kind.AUTH, "user", "al", text, b"hash") for text in (b"1", b"2"))
    for entry in (first, second):
        txn = tree.begin()
        assert txn.perform(entry, NOW_NS) is None
        assert txn.entry("user", "al") == entry
        tree.commit(txn)
        assert tree.state.entry("user", "al") == entry
        assert tree.state.entry("role", "al") is None
    txn = tree.begin()
    for _ in range(2):  # the second removes what is not there
        txn.perform(second._replace(document=None, secret=None), NOW_NS)
    tree.commit(txn)
    assert tree.state.entry("user", "al") is None
    assert tree.state.entries() == []


def test_entries_are_listed_by_their_names(tree):
    names = ["", "b", "a", "a\0", "\N{SNOWMAN}", "n" * 1000, "n" * 999]
    txn = tree.begin()
    for what in ("user", "role", "us"):
        for name in names:
            txn.perform(Entry(Kind.MEMBER, what, name, name.encode(), None), NOW_NS)
    tree.commit(txn)
    for what in ("user", "role", "us"):
        found = tree.state.entries(what)
        assert [(entry.what, entry.name) for entry in found] == [(what, n) for n in sorted(names)]
        assert [entry.document for entry in found] == [n.encode() for n in sorted(names)]
    assert len(tree.state.entries()) == 3 * len(names)
    assert tree.state.entries("nothing") == []


def test_entries_of_a_dropped_batch_are_not_there(tree):
    txn = tree.begin()
    txn.perform(Entry(Kind.AUTH, "user", "al", b"{}", None), NOW_NS)
    txn.end()
    assert tree.state.entry("user", "al") is None


# How far the log has been performed


def test_positions_count_records_of_all_kinds_and_indexes_only_changes(tree):
    txn = tree.begin()
    txn.perform(Term(5), NOW_NS)
    txn.perform(Setting("history_limit", 9), NOW_NS)
    txn.perform(Entry(Kind.AUTH, "user", "al", b"{}", b"hash"), NOW_NS)
    perform(txn, *set_(b"/a"))
    tree.commit(txn)
    assert (tree.applied.pos, tree.applied.index, tree.applied.term) == (4, 2, 5)
    assert tree.state.flushed().applied.index == (1 if tree.way == "refused" else 2)


def test_an_unknown_setting_changes_nothing(tree):
    txn = tree.begin()
    txn.perform(Setting("of a later version", 9), NOW_NS)
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


# What the index holds, and when it is written to


def stored(tree):
    """What the index says by itself: how far it is, and all its rows."""
    with tree.index.env.begin() as txn:
        rows = {
            name: dict(txn.cursor(db=table))
            for name, table in tree.index.tables.items()
            if name != b"meta"
        }
        return IndexView(txn, tree.index.tables).applied, rows


@pytest.fixture
def flushes(monkeypatch):
    """Counts how often a flush is asked for."""
    asked = []
    flush = State.flush

    def counting(self, **options):
        asked.append(options)
        flush(self, **options)

    monkeypatch.setattr(State, "flush", counting)
    return asked


@pytest.mark.parametrize("tree", ["each scan"], indirect=True)
@pytest.mark.parametrize(
    "scan",
    [
        lambda txn: txn.has_children(txn.find(b"/empty").dir_id),
        lambda txn: txn.has_living_children(txn.find(b"/empty").dir_id, NOW_NS, 10),
        lambda txn: txn.due(NOW_NS, 10),
        lambda txn: txn.entries(),
        lambda txn: txn.perform(Setting("history_limit", 50), NOW_NS),
    ],
    ids=["has_children", "has_living_children", "due", "entries", "a setting"],
)
def test_a_flush_amid_a_batch_writes_nothing_of_that_batch(tree, flushes, scan):
    tree.do(set_(b"/d/a", b"committed", 10), set_(b"/d/" + LONG * 2, b"committed"))
    tree.do(mkdir(b"/empty"))
    before = tree.applied
    txn = tree.begin()
    perform(txn, *set_(b"/d/a", b"pending", 5))
    perform(txn, *delete(b"/d/" + LONG * 2))
    perform(txn, *set_(b"/new/x", b"pending"))
    txn.perform(Entry(Kind.AUTH, "user", "al", b"{}", None), NOW_NS)
    scan(txn)
    assert flushes
    perform(txn, *set_(b"/new/y", b"pending"))
    applied, rows = stored(tree)
    assert applied == before == tree.applied
    assert not any(b"pending" in row for row in rows[b"nodes"].values())
    assert len(rows[b"nodes"]) == 4
    assert (len(rows[b"ttl"]), len(rows[b"entries"]), len(rows[b"events"])) == (1, 0, 3)
    tree.commit(txn)
    assert stored(tree)[0] == before
    tree.flush()
    assert stored(tree)[0] == tree.applied
    assert names(tree.state, b"/new") == [b"x", b"y"]
    assert names(tree.state, b"/d") == [b"a"]
    assert tree.first_due_ns() == 5


@pytest.mark.parametrize("tree", ["each scan"], indirect=True)
def test_only_scans_have_the_index_written_to(tree, flushes):
    tree.do(set_(b"/d/a"), mkdir(b"/e"), set_(b"/" + LONG * 2))
    tree.state.flush()
    flushes.clear()
    tree.do(set_(b"/d/b", b"", 50), delete(b"/d/a"), set_(b"/f/g/h"))
    singles = [
        lambda view: [view.find(p) for p in (b"/d/a", b"/d/b", b"/e", b"/" + LONG * 2, b"/none")],
        lambda view: view.obstacle(b"/none/x"),
        lambda view: view.first_ended(b"/d/b", NOW_NS),
        lambda view: view.entry("user", "al"),
    ]
    txn = tree.begin()
    for single in singles:
        for view in (tree.state, tree.state.at(NOW_NS), txn):
            single(view)
    assert indexes(tree.state) == list(range(2, 8))
    perform(txn, *set_(b"/i/j"))
    perform(txn, *delete(b"/f"))
    txn.due(49, 10)
    tree.commit(txn)
    assert flushes == []
    dir_id = tree.state.find(b"/d").dir_id
    for scan in (
        lambda view: list(view.children(dir_id)),
        lambda view: view.names(dir_id, b"", 10),
        lambda view: view.has_children(dir_id),
        lambda view: view.entries(),
    ):
        for view in (tree.state, tree.state.at(NOW_NS)):
            tree.do(set_(b"/d/c"))
            flushes.clear()
            scan(view)
            assert len(flushes) == 1
            scan(view)
            assert len(flushes) == 1


# Memory


@pytest.mark.parametrize("tree", ["each scan"], indirect=True)
def test_what_is_kept_of_written_nodes_is_bounded_by_their_number(tree, monkeypatch):
    monkeypatch.setattr("kvd.storage.index.state._KEPT_NODES_MAX", 20)
    most = 0
    for number in range(200):
        tree.do(set_(b"/d/%d" % number, b"v", NOW_NS))
        if number % 5 == 4:
            tree.flush()
            state = tree.state
            assert len(state.nodes) <= 20
            assert tree.state.late_rows() == {}
            late = state.unflushed
            assert not any((late.dirty, late.paths, late.events, late.entered))
            most = max(most, len(state.nodes))
    assert most > 10
    assert len(names(tree.state, b"/d")) == 200


@pytest.mark.parametrize("tree", ["each scan"], indirect=True)
def test_what_is_kept_of_written_nodes_is_bounded_by_their_bytes(tree, monkeypatch):
    monkeypatch.setattr("kvd.storage.index.state._KEPT_BYTES_MAX", 50_000)
    cleared = 0
    for number in range(100):
        txn = tree.begin()
        perform(txn, *set_(b"/d/%d" % number, b"v" * 5000))
        txn.size = 5000
        tree.commit(txn)
        tree.flush()
        kept = sum(len(node.value or b"") for node in tree.state.nodes.values())
        assert kept <= 50_000
        cleared += not kept
    assert cleared
    assert tree.state.find(b"/d/0").value == b"v" * 5000


@pytest.mark.parametrize("tree", ["refused"], indirect=True)
def test_what_waits_for_the_index_says_when_there_is_enough_of_it(tree):
    state = tree.state
    told = []
    while not state.is_full:
        txn = tree.begin()
        perform(txn, *set_(b"/a", b"v"))
        tree.commit(txn)
        told.append(state.wants_flush)
    assert told.index(True) == FLUSH_RECORDS - 1
    assert len(told) == FLUSH_RECORDS * BEHIND_FACTOR
    assert tree.applied.index - state.flushed().applied.index == len(told)
    tree.flush()
    assert not any((state.is_full, state.wants_flush, state.is_behind))


def test_a_replay_keeps_no_more_events_than_the_history_holds(tree, monkeypatch):
    monkeypatch.setattr("kvd.storage.index.pending._LATE_MAX", 30)
    txn = tree.begin()
    txn.perform(Setting("history_limit", 10), NOW_NS)
    most = 0
    for number in range(500):
        perform(txn, *set_(b"/a", b"%d" % number))
        txn.end_batch()
        most = max(most, len(txn.events))
    assert most <= 31
    assert len(txn.nodes) == 1
    tree.commit(txn)
    assert indexes(tree.state) == list(range(492, 502))
    tree.flush()
    assert indexes(tree.state) == list(range(492, 502))
    assert tree.rows()["events"] == 10


# Directories that are removed and made again


STEPS = [
    *([set_(b"/d/e/a", b"1", 50)], [delete(b"/d")], [set_(b"/d/e/b", b"2", 60)]),
    *([delete(b"/d/e"), mkdir(b"/d/e")], [set_(b"/d/e/a", b"3")], [delete(b"/d")]),
    *([set_(b"/d", b"file")], [set_(b"/" + LONG * 2 + b"/x", b"4", 70)], [delete(b"/" + LONG * 2)]),
    *([mkdir(b"/" + LONG * 2)], [delete(b"/d")], [set_(b"/d/e/f/g", b"5")]),
]


@pytest.mark.parametrize("tree", ["each scan"], indirect=True)
@pytest.mark.parametrize("last", range(len(STEPS)))
def test_a_flush_between_any_two_steps_changes_nothing(tree, last):
    """`last` steps pile up, and then each one is flushed; the last of them is looked at first."""
    for number, step in enumerate(STEPS):
        tree.do(*step)
        if number >= last:
            tree.flush()
    view = tree.state
    assert names(view, b"/") == [b"d", LONG * 2]
    assert names(view, b"/d") == [b"e"]
    assert names(view, b"/d/e") == [b"f"]
    assert names(view, b"/" + LONG * 2) == []
    assert view.find(b"/d/e/f/g").value == b"5"
    for gone in (b"/d/e/a", b"/d/e/b", b"/" + LONG * 2 + b"/x"):
        assert view.find(gone) is None
    txn = tree.begin()
    assert txn.due(100, 10)[0] == []
    txn.end()
    tree.reclaim(1)
    rows = tree.rows()
    assert (rows["nodes"], rows["ttl"], rows["garbage"]) == (5, 0, 0)


# What bounds it


def test_a_record_that_makes_many_nodes_is_worth_a_flush_by_itself(tree):
    path = b"/x" * (state_module.FLUSH_NODES + 1)
    tree.do(set_(path, b"v"))
    if tree.way != "each batch":
        assert tree.state.wants_flush
    tree.do(set_(b"/y" * (state_module.FLUSH_NODES * state_module.BEHIND_FACTOR), b"v"))
    if tree.way != "each batch":
        assert tree.state.is_full
        assert tree.state.is_heavy
    tree.flush()
    assert not any((tree.state.wants_flush, tree.state.is_heavy, tree.state.is_full))
    assert len(tree.state.nodes) == 0, "so many are not kept"


def test_rows_that_are_late_are_made_once_for_a_state(tmp_path, monkeypatch):
    tree = Tree(tmp_path / "index", "refused")
    monkeypatch.setattr("kvd.storage.index.state.reach_commit", refuse)
    sealed = []
    monkeypatch.setattr(
        "kvd.storage.index.unflushed.seal_node",
        lambda *node: sealed.append(node[0]) or seal_node(*node),
    )
    tree.do(*(set_(b"/%d" % i) for i in range(50)))
    for _ in range(20):
        assert len(names(tree.state, b"/")) == 50
    assert len(sealed) == 50
    tree.do(set_(b"/last"))
    assert b"last" in names(tree.state, b"/")
    tree.state.end()
    tree.index.env.close()


def test_expirations_of_nothing_are_met_once_while_the_index_refuses(tmp_path, monkeypatch):
    tree = Tree(tmp_path / "index", "each batch")
    tree.do(*(set_(b"/d/%d" % i, b"", 10) for i in range(30)), set_(b"/k", b"", 10))
    tree.do(delete(b"/d"))
    monkeypatch.setattr("kvd.storage.index.state.reach_commit", refuse)
    tree.way = "refused"
    met = []
    for _ in range(5):  # ten at a time, and what is left is found behind them
        due, next_ns = tree.begin().due(20, 10)
        met += [path for path, _ in due]
    assert met[:1] == [b"/k"]
    assert next_ns == 0
    tree.state.end()
    tree.index.env.close()


def refuse():
    raise lmdb.MapFullError("no room")
