"""storage/replay.py: what a rebuild costs, counted, so that it stays as short as it is."""

import gc
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from kvd.storage.index.environment import Index
from kvd.storage.replay import load, replay
from kvd.storage.tools.bulk_load import bulk_load
from kvd.storage.tools.source import reading
from kvd.v2.commands import Set
from tests.support.stores import NOW_NS, open_store, write

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11),
    reason="the budgets were counted with CPython 3.11, others compile to other instructions",
)
RECORDS = 640


class Bytecodes:
    """Counts the instructions of Python that are executed inside it, on this thread."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Bytecodes":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        self.count += event == "opcode"
        return self._trace


def make(path: Path, batch: int) -> None:
    """A store of some keys, and a log that writes them again."""
    keys = [b"/dir/%02d/key-%04d" % (i % 50, i) for i in range(RECORDS)]
    bulk_load(path, [(key, b"v" * 100) for key in keys], time_ns=NOW_NS)
    store = open_store(path, segment_bytes_max=1 << 20)
    for start in range(0, RECORDS, batch):
        write(store, *(Set(key, b"w" * 100) for key in keys[start : start + batch]))
    store.close()


# What was counted, and a twentieth of room; each record's event is in the history, which not every
# record's is in a longer log. A PUT of a server costs 3,500.
@pytest.mark.parametrize(("batch", "budget"), [(64, 810), (1, 1380)])
def test_a_replayed_record_costs_no_more_than_its_budget(tmp_path, batch, budget):
    make(tmp_path / "data", batch)
    with reading(tmp_path / "data") as source:
        (base,) = source.bases()
        index = Index.create(tmp_path / "index")
        with Bytecodes() as loading:
            load(index, base.path)
        frames = list(source.frames(base.position))
        with Bytecodes() as replaying:
            assert replay(index, iter(frames)) == RECORDS
        with Bytecodes() as reading_it:
            assert len(list(source.frames(base.position))) == len(frames)
        index.env.close()
    each = (replaying.count + reading_it.count) / RECORDS
    assert each < budget
    assert loading.count / RECORDS < 124  # two rows each, and their sums


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_nothing_looks_for_cycles_in_what_a_replay_has_pending(tmp_path):
    """It would go through all of it, time and again: a quarter of the time of small records."""
    make(tmp_path / "data", 64)
    with reading(tmp_path / "data") as source:
        (base,) = source.bases()
        index = Index.create(tmp_path / "index")
        load(index, base.path)
        frames = list(source.frames(base.position))
        gc.collect()  # none is due by itself until the replay begins
        before = collections()
        assert replay(index, iter(frames)) == RECORDS
        # One is due as soon as the replay has ended.
        assert collections() - before <= 1
        assert gc.isenabled()
        index.env.close()
