"""What the ledger accepts, and what it refuses."""

from collections.abc import Callable

import pytest

from kvd.testing.crash import Fact, File, Ledger, Request, Violation


def write(key: str, index: int, value: str, *, start: float, end: float, prev: int = 0) -> Request:
    node = {"key": key, "value": value, "createdIndex": index, "modifiedIndex": index}
    event = {"action": "set", "node": node}
    if prev:
        event["prevNode"] = {"key": key, "value": "1", "createdIndex": 2, "modifiedIndex": prev}
    return Request("PUT", key, {"value": value}, start, end, 200, index, event)


def read(key: str, index: int, node: dict[str, object], *, start: float) -> Request:
    return Request("GET", key, {}, start, start + 1, 200, index, {"action": "get", "node": node})


FIRST = Fact(2, "set", "/k/a", "1", False, 2, None, 0)
SECOND = Fact(3, "set", "/k/a", "2", False, 3, "1", 2)
SENT = {"key": "/k/a", "value": "1", "createdIndex": 2, "modifiedIndex": 2}


def settle(ops: list[Request], facts: list[Fact]) -> None:
    last = facts[-1]
    files = {"/k/a": File(str(last.value), last.created, last.index)}
    Ledger().settle(ops, facts, files)


def test_a_history_in_one_order_is_accepted():
    ops = [
        write("/k/a", 2, "1", start=0, end=1),
        write("/k/a", 3, "2", start=2, end=5, prev=2),
        read("/k/a", 2, SENT, start=2),
        Request("PUT", "/k/a", {"value": "never answered"}, 3),
    ]
    settle(ops, [FIRST, SECOND])


def lost() -> None:
    settle([write("/k/a", 3, "3", start=0, end=1, prev=2)], [FIRST, SECOND])


def invented() -> None:
    settle([write("/k/a", 2, "1", start=0, end=1)], [FIRST, SECOND])


def gap() -> None:
    settle([], [FIRST, SECOND._replace(index=4)])


def stale_read() -> None:
    ops = [write("/k/a", 2, "1", start=0, end=1), write("/k/a", 3, "2", start=2, end=3, prev=2)]
    settle([*ops, read("/k/a", 2, SENT, start=4)], [FIRST, SECOND])


EXPIRED = Fact(3, "expire", "/k/a", None, False, 2, "1", 2)


def settle_end(**params: str) -> None:
    op = write("/k/a", 2, "1", start=0, end=1)
    op.params |= params
    Ledger().settle([op], [FIRST, EXPIRED], {})


def test_a_key_with_a_ttl_may_expire():
    settle_end(ttl="5")


def lost_by_expiry() -> None:
    settle_end()


def no_event() -> None:
    settle([Request("PUT", "/k/a", {"value": "1"}, 0, 1, 200, 2, {"node": None})], [FIRST])


def no_refusal() -> None:
    settle([Request("PUT", "/k/a", {"value": "1"}, 0, 1, 400, 2, None)], [FIRST])


def wrong_read() -> None:
    ops = [write("/k/a", 2, "1", start=0, end=1), write("/k/a", 3, "2", start=2, end=3, prev=2)]
    settle([*ops, read("/k/a", 3, SENT, start=2)], [FIRST, SECOND])


def later_first() -> None:
    ops = [write("/k/a", 2, "1", start=5, end=6), write("/k/a", 3, "2", start=0, end=1, prev=2)]
    settle(ops, [FIRST, SECOND])


@pytest.mark.parametrize(
    "wrong",
    [
        *(lost, invented, gap, stale_read, wrong_read, later_first),
        *(lost_by_expiry, no_event, no_refusal),
    ],
)
def test_a_history_that_cannot_be_is_refused(wrong: Callable[[], None]):
    with pytest.raises(Violation):
        wrong()
