"""The rules and the engine against a dict: any life of a store leaves the same behind in both."""

import shutil
import tempfile
from itertools import groupby
from pathlib import Path
from random import Random

import lmdb
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kvd.storage import disk
from kvd.storage.format.records import Change, encode_record
from kvd.storage.index.integrity.completeness import prove_all
from kvd.v2.errors import ApiError
from kvd.v2.rules import decide, expire
from tests.support.model import Model
from tests.support.stores import (
    NOW_NS,
    SECOND_NS,
    commit,
    dump,
    history,
    open_store,
    random_command,
    reclaim_all,
    tree,
)

HISTORY = 30
NAMED_BYTES = (1, 300, 4096)
"""From which length on a value stands in the history once, by its event: most, some, none."""


class Twins:
    """A store and a model that live the same life.

    Attributes:
        refuses: Whether the index takes nothing, as where its map is full.
    """

    def __init__(self, path):
        self._path = path
        self.refuses = False
        self.store = open_store(path)
        self.model = Model()
        self.now_ns = NOW_NS
        self.store.start_term(NOW_NS, HISTORY)

    def batch(self, commands, *, keep=True):
        """Run commands on both; without `keep` as a batch that is aborted."""
        model = self.model.copy()
        txn = self.store.begin()
        records = []
        for command in commands:
            ours, theirs = (
                outcome(state, command, txn.index + 1, self.now_ns) for state in (txn, model)
            )
            assert ours == theirs
            if isinstance(ours, Change):
                self.apply(txn, model, ours)
                records.append(encode_record(ours))
        if keep:
            commit(self.store, txn, records, self.now_ns)
            self.model = model
        else:
            txn.end()

    def apply(self, txn, model, change):
        event = txn.apply(change, self.now_ns)
        prev = model.apply(change)
        assert event.change == change
        assert (event.prev and event.prev[:4]) == (prev and prev[:4])
        assert bool(event.prev and event.prev.dir_id) == bool(prev and prev.dir_id)

    def sweep(self, limit=1000):
        """Expire what is due on both: each path at its time, among equals in the store's order."""
        txn = self.store.begin()
        due, next_ns = txn.due(self.now_ns, limit)
        expected = self.model.due(self.now_ns)
        found = [(node.expiration_ns, path) for path, node in due]
        assert [when for when, _ in found] == [when for when, _ in expected[: len(found)]]
        assert sorted(found) == expected or len(found) < len(expected)
        records = []
        for path, node in due:
            if txn.find(path) != node:
                assert self.model.find(path) is None
                continue
            change = expire(path, node, txn.index + 1)
            self.apply(txn, self.model, change)
            records.append(encode_record(change))
        txn.due_ns = next_ns
        commit(self.store, txn, records, self.now_ns)

    def flush(self, free=0):
        """Have the index take everything, and free some of what hangs below removed directories.

        It may refuse to.
        """
        if self.refuses:
            with pytest.raises(lmdb.MapFullError):
                self.store.flush(free=free + 1)
            assert self.store.state.refused
            return
        self.store.flush(free=free)
        assert not self.store.state.is_behind
        assert self.store.state.late_rows() == {}
        prove_all(self.store.index.env, self.store.index.tables)

    def restart(self, *, rebuild_index):
        self.refuses = False
        before = dump(self.store)
        self.store.close()
        self.store = open_store(self._path, rebuild_index=rebuild_index)
        assert (self.store.recovery.source == "clean stop") != rebuild_index
        assert dump(self.store) == before

    def compare_nodes(self):
        """Look at each node that there is, or was, and at the events: none of it is a scan."""
        view = self.store.view
        stored = view.stored
        nodes = self.model.tree()
        for path in nodes.keys() | {change.key for change, _ in self.model.events}:
            node = view.find(path)
            assert (node and (node[:4], bool(node.dir_id))) == nodes.get(path)
        self._compare_events(view)
        assert view.stored is stored

    def compare(self):
        view = self.store.view
        assert view.applied.index == self.model.index
        assert tree(view) == self.model.tree()
        with self.store.long_view() as long:
            assert tree(long) == self.model.tree()
        self._compare_events(view)
        txn = self.store.begin()
        due = [(node.expiration_ns, path) for path, node in txn.due(1 << 63, 1 << 60)[0]]
        txn.end()
        expected = self.model.due(1 << 63)
        assert [sorted(group) for _, group in groupby(due, lambda row: row[0])] == [
            list(group) for _, group in groupby(expected, lambda row: row[0])
        ]

    def _compare_events(self, view):
        received = [(change, prev) for change, prev, _ in history(view)]
        assert received == [
            (change, prev and (prev[:4], bool(prev.dir_id)))
            for change, prev in self.model.events[-HISTORY:]
        ]

    def close(self):
        self.store.close()


def outcome(state, command, index, now_ns):
    """The change, or what a refusal says."""
    try:
        return decide(state, command, index, now_ns)
    except ApiError as refusal:
        return refusal.code, refusal.cause, refusal.index


@pytest.fixture
def refusing(monkeypatch):
    """Returns how to make the index of twins refuse what it is to take."""

    def may_refuse(twins):
        def reach_commit(_faults):
            if twins.refuses:
                raise lmdb.MapFullError("no room")

        monkeypatch.setattr("kvd.storage.index.flushing.reach_commit", reach_commit)

    return may_refuse


@pytest.fixture
def _named(monkeypatch, seed):
    """Let values stand in the history once from one length on or another."""
    bytes_min = NAMED_BYTES[seed % len(NAMED_BYTES)]
    monkeypatch.setattr("kvd.storage.index.history.NAMED_BYTES_MIN", bytes_min)


@pytest.fixture
def no_sync(monkeypatch):
    """The disk is not what is looked at here."""
    for name in ("sync_data", "sync_file", "sync_directory"):
        monkeypatch.setattr(disk, name, lambda _: None)


@pytest.mark.usefixtures("no_sync", "_named")
@pytest.mark.parametrize("seed", range(6))
def test_a_long_random_life_leaves_the_same_in_both(tmp_path, seed):
    dice = Random(seed)
    twins = Twins(tmp_path / "data")
    for step in range(250):
        twins.batch([random_command(dice) for _ in range(dice.choice((1, 1, 2, 6)))])
        chance = dice.random()
        if chance < 0.1:
            twins.batch([random_command(dice) for _ in range(4)], keep=False)
        elif chance < 0.3:
            twins.now_ns += dice.choice((1, SECOND_NS, 5 * SECOND_NS))
            twins.sweep(dice.choice((1, 1000)))
        elif chance < 0.35:
            reclaim_all(twins.store)
        if step % 100 == 50:
            twins.restart(rebuild_index=bool(seed % 2))
        twins.compare()
    assert twins.model.index > 250
    twins.close()


@pytest.mark.usefixtures("no_sync", "_named")
@pytest.mark.parametrize("seed", range(6))
def test_when_the_index_is_written_to_makes_no_difference(tmp_path, refusing, seed):
    """Flushes come between any two steps, or the index refuses them for a while.

    Most comparisons are no scans, which would flush: what the index lacks piles up, and removed
    directories are made again before it has heard of it.
    """
    dice = Random(seed)
    twins = Twins(tmp_path / "data")
    refusing(twins)
    late = 0
    for step in range(300):
        twins.batch([random_command(dice) for _ in range(dice.choice((1, 1, 2, 6)))])
        chance = dice.random()
        if chance < 0.05:
            twins.refuses = not twins.refuses
        elif chance < 0.15:
            twins.flush(free=dice.choice((0, 1, 100)))
        elif chance < 0.2:
            twins.batch([random_command(dice) for _ in range(4)], keep=False)
        elif chance < 0.25:
            twins.now_ns += dice.choice((1, SECOND_NS, 5 * SECOND_NS))
            twins.sweep(dice.choice((1, 1000)))
        if step % 100 == 50:
            twins.restart(rebuild_index=bool(seed % 2))
        if dice.random() < 0.1:
            twins.compare()
        else:
            twins.compare_nodes()
        late = max(late, twins.store.applied.pos - twins.store.state.stored.pos)
    twins.refuses = False
    twins.flush(free=1000)
    twins.compare()
    assert late > 20
    twins.close()


class AnyLife(RuleBasedStateMachine):
    """The same with lives that hypothesis chooses, and shortens when one goes wrong."""

    @initialize(named_bytes_min=st.sampled_from(NAMED_BYTES))
    def start(self, named_bytes_min):
        self.directory = Path(tempfile.mkdtemp())
        self.twins = Twins(self.directory / "data")
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("kvd.storage.index.flushing.reach_commit", self.reach_commit)
        self.patch.setattr("kvd.storage.index.history.NAMED_BYTES_MIN", named_bytes_min)
        self.scans = True

    def reach_commit(self, _faults):
        if self.twins.refuses:
            raise lmdb.MapFullError("no room")

    @rule(dice=st.randoms(use_true_random=False), size=st.integers(1, 5), keep=st.booleans())
    def batch(self, dice, size, keep):
        self.twins.batch([random_command(dice) for _ in range(size)], keep=keep or size < 4)

    @rule(step_ns=st.sampled_from([0, 1, SECOND_NS, 60 * SECOND_NS]), limit=st.integers(1, 50))
    def expire(self, step_ns, limit):
        self.twins.now_ns += step_ns
        self.twins.sweep(limit)

    @rule(free=st.integers(0, 3))
    def flush(self, free):
        self.twins.flush(free)

    @rule(refuses=st.booleans(), scans=st.booleans())
    def change_the_index(self, refuses, scans):
        """Have it refuse what it is to take, or not; have what follows be compared by scans."""
        self.twins.refuses, self.scans = refuses, scans

    @precondition(lambda self: not self.twins.refuses)
    @rule()
    def reclaim(self):
        reclaim_all(self.twins.store)

    @rule(rebuild_index=st.booleans())
    def restart(self, rebuild_index):
        self.twins.restart(rebuild_index=rebuild_index)

    @invariant()
    def are_twins(self):
        if self.scans:
            self.twins.compare()
        else:
            self.twins.compare_nodes()

    def teardown(self):
        if hasattr(self, "twins"):
            self.twins.refuses = False
            self.twins.compare()
            self.twins.close()
            self.patch.undo()
            shutil.rmtree(self.directory)


TestAnyLife = AnyLife.TestCase
TestAnyLife.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
