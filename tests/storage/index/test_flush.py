"""Changes that wait in memory for the index: what they show, what bounds them, their flush."""

import lmdb
import pytest

from kvd.storage.format.node import seal_node
from kvd.storage.format.records import Document, Kind, LoggedSetting
from kvd.storage.index import state as state_module
from kvd.storage.index.index_view import IndexView
from kvd.storage.index.state import BEHIND_FACTOR, FLUSH_RECORDS, State
from tests.support.tree import LONG, NOW_NS, Tree, apply, delete, indexes, mkdir, names, set_


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
        lambda txn: txn.documents(),
        lambda txn: txn.apply(LoggedSetting("history_limit", 50), NOW_NS),
    ],
    ids=["has_children", "has_living_children", "due", "entries", "a setting"],
)
def test_a_flush_amid_a_batch_writes_nothing_of_that_batch(tree, flushes, scan):
    tree.do(set_(b"/d/a", b"committed", 10), set_(b"/d/" + LONG * 2, b"committed"))
    tree.do(mkdir(b"/empty"))
    before = tree.applied
    txn = tree.begin()
    apply(txn, *set_(b"/d/a", b"pending", 5))
    apply(txn, *delete(b"/d/" + LONG * 2))
    apply(txn, *set_(b"/new/x", b"pending"))
    txn.apply(Document(Kind.AUTH, "user", "al", b"{}", None), NOW_NS)
    scan(txn)
    assert flushes
    apply(txn, *set_(b"/new/y", b"pending"))
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
        lambda view: view.document("user", "al"),
    ]
    txn = tree.begin()
    for single in singles:
        for view in (tree.state, tree.state.at(NOW_NS), txn):
            single(view)
    assert indexes(tree.state) == list(range(2, 8))
    apply(txn, *set_(b"/i/j"))
    apply(txn, *delete(b"/f"))
    txn.due(49, 10)
    tree.commit(txn)
    assert flushes == []
    dir_id = tree.state.find(b"/d").dir_id
    for scan in (
        lambda view: list(view.children(dir_id)),
        lambda view: view.names(dir_id, b"", 10),
        lambda view: view.has_children(dir_id),
        lambda view: view.documents(),
    ):
        for view in (tree.state, tree.state.at(NOW_NS)):
            tree.do(set_(b"/d/c"))
            flushes.clear()
            scan(view)
            assert len(flushes) == 1
            scan(view)
            assert len(flushes) == 1


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
            assert not any((late.dirty, late.paths, late.events, late.changed_documents))
            most = max(most, len(state.nodes))
    assert most > 10
    assert len(names(tree.state, b"/d")) == 200


@pytest.mark.parametrize("tree", ["each scan"], indirect=True)
def test_what_is_kept_of_written_nodes_is_bounded_by_their_bytes(tree, monkeypatch):
    monkeypatch.setattr("kvd.storage.index.state._KEPT_BYTES_MAX", 50_000)
    cleared = 0
    for number in range(100):
        txn = tree.begin()
        apply(txn, *set_(b"/d/%d" % number, b"v" * 5000))
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
    received = []
    while not state.is_full:
        txn = tree.begin()
        apply(txn, *set_(b"/a", b"v"))
        tree.commit(txn)
        received.append(state.wants_flush)
    assert received.index(True) == FLUSH_RECORDS - 1
    assert len(received) == FLUSH_RECORDS * BEHIND_FACTOR
    assert tree.applied.index - state.flushed().applied.index == len(received)
    tree.flush()
    assert not any((state.is_full, state.wants_flush, state.is_behind))


def test_a_replay_keeps_no_more_events_than_the_history_holds(tree, monkeypatch):
    monkeypatch.setattr("kvd.storage.index.pending._LATE_MAX", 30)
    txn = tree.begin()
    txn.apply(LoggedSetting("history_limit", 10), NOW_NS)
    most = 0
    for number in range(500):
        apply(txn, *set_(b"/a", b"%d" % number))
        txn.end_batch()
        most = max(most, len(txn.events))
    assert most <= 31
    assert len(txn.nodes) == 1
    tree.commit(txn)
    assert indexes(tree.state) == list(range(492, 502))
    tree.flush()
    assert indexes(tree.state) == list(range(492, 502))
    assert tree.rows()["events"] == 10


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
    monkeypatch.setattr("kvd.storage.index.flushing.reach_commit", refuse)
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
    monkeypatch.setattr("kvd.storage.index.flushing.reach_commit", refuse)
    tree.way = "refused"
    met = []
    for _ in range(5):  # ten at a time, and what is left is found behind them
        due, next_ns = tree.begin().due(20, 10)
        met += [path for path, _ in due]
    assert met[:1] == [b"/k"]
    assert next_ns == 0
    tree.state.end()
    tree.index.env.close()


def refuse(_faults):
    raise lmdb.MapFullError("no room")
