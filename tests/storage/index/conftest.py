"""Fixtures of the tests of the index."""

import lmdb
import pytest

from tests.support.tree import Tree


@pytest.fixture(params=["each scan", "each batch", "refused"])
def tree(request, tmp_path, monkeypatch):
    tree = Tree(tmp_path / "index", request.param)

    def reach_commit(_faults):
        if tree.refuses:
            raise lmdb.MapFullError("no room")

    monkeypatch.setattr("kvd.storage.index.flushing.reach_commit", reach_commit)
    yield tree
    tree.state.end()
    tree.index.env.close()
