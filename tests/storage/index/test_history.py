"""The event history: its length, its limit, its events."""

import pytest

from kvd.storage.format.records import LoggedSetting
from tests.support.tree import NOW_NS, delete, indexes, set_


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
    assert txn.apply(LoggedSetting("history_limit", limit), NOW_NS) is None
    tree.commit(txn)
    assert indexes(tree.state) == list(range(22 - limit, 22))
    tree.do(set_(b"/a"))
    assert indexes(tree.state) == list(range(23 - limit, 23))
    assert tree.applied.history_limit == limit
    assert tree.applied.oldest_event == 23 - limit


def test_a_longer_history_begins_where_the_shorter_one_did(tree):
    txn = tree.begin()
    txn.apply(LoggedSetting("history_limit", 2), NOW_NS)
    tree.commit(txn)
    tree.do(*(set_(b"/a") for _ in range(5)))
    txn = tree.begin()
    txn.apply(LoggedSetting("history_limit", 100), NOW_NS)
    tree.commit(txn)
    tree.do(*(set_(b"/a") for _ in range(5)))
    assert indexes(tree.state) == list(range(5, 12))


def test_the_event_of_a_removed_directory_has_the_directory_before_it(tree):
    tree.do(set_(b"/d/a"))
    (event,) = tree.do(delete(b"/d"))
    assert event.prev[:3] == (None, 2, 2)
    (received,) = tree.state.events(3)
    assert received.change == event.change
    assert received.prev[:4] == event.prev[:4]
    assert received.prev.dir_id
