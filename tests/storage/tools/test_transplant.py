"""transplant.py: a store from nodes that have a past is the one that the past would have made."""

from random import Random

import pytest

from kvd.storage.errors import DirectoryUnusable
from kvd.storage.format.identity import NewIds
from kvd.storage.format.node import Node
from kvd.storage.tools.digest import digest
from kvd.storage.tools.source import reading
from kvd.storage.tools.transplant import Past, each_node, transplant
from kvd.storage.tools.verify import Verdict, verify
from kvd.v2.commands import Set
from tests.support.stores import (
    LONG,
    history,
    live,
    log_documents,
    open_store,
    random_document,
    tree,
    write,
)

IDS = NewIds(0xC1, 0xA1)


def nothing(_path):
    pass


def source(path):
    """A store with a past: many writes of every kind, large values, users."""
    store = open_store(path)
    live(store, Random(11), 150)
    for n in range(3):
        write(store, Set(b"/long/" + LONG * 2, bytes([n]) * 9000), now_ns=store.applied.time_ns)
    log_documents(
        store, *(random_document(Random(n)) for n in range(5)), now_ns=store.applied.time_ns
    )
    return store


def past_of(store):
    applied = store.applied
    events = list(store.view.events(applied.oldest_event))
    return Past(applied.index, [e for e in events if e.change.index > 1], applied.pos, 7, IDS)


@pytest.fixture
def grown(tmp_path):
    store = source(tmp_path / "source")
    yield store
    store.close()


def test_nodes_events_and_documents_are_those_of_the_source(tmp_path, grown):
    nodes = list(each_node(grown.view))
    transplant(tmp_path / "new", nodes, grown.view.documents(), past_of(grown), nothing)
    store = open_store(tmp_path / "new")
    assert store.recovery == ("clean stop", 0)
    assert tree(store.view) == tree(grown.view)
    assert history(store.view) == history(grown.view)
    assert store.view.documents() == grown.view.documents()
    assert (store.identity.cluster_id, store.identity.member_id) == IDS
    store.close()


def test_the_log_goes_on_behind_the_past(tmp_path, grown):
    nodes = list(each_node(grown.view))
    past = past_of(grown)
    transplant(tmp_path / "new", nodes, [], past, nothing)
    store = open_store(tmp_path / "new")
    (event,) = write(store, Set(b"/next", b"1"), now_ns=store.applied.time_ns)
    assert event.change.index == past.index + 1
    assert store.applied.pos > past.pos
    held = digest(store.view)
    store.close()
    store = open_store(tmp_path / "new", rebuild_index=True)
    assert digest(store.view) == held
    store.close()


def test_it_passes_every_check(tmp_path, grown):
    transplant(tmp_path / "new", each_node(grown.view), [], past_of(grown), nothing)
    (tmp_path / "scratch").mkdir()
    with reading(tmp_path / "new") as new:
        findings = list(verify(new, tmp_path / "scratch"))
    assert {finding.verdict for finding in findings} == {Verdict.GOOD}


def test_what_fails_its_check_leaves_nothing(tmp_path):
    def refuse(draft):
        assert (draft / "FORMAT").exists()
        raise DirectoryUnusable("not equal")

    with pytest.raises(DirectoryUnusable, match="not equal"):
        transplant(tmp_path / "new", [(b"/a", Node(b"1", 3, 3))], [], Past(9), refuse)
    assert list(tmp_path.iterdir()) == []
