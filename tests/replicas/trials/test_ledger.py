"""ledger.py: a history that holds is found good, and each that does not is found out."""

import copy
from collections.abc import Callable

import pytest

from kvd.testing.crash.facts import REMOVALS, File, fact_of
from tests.replicas.trials.ledger import KINDS, History, Listing, Request, Watched, check, counted

FIRST = 10
SERVERS = range(3)


class Shop:
    """One store, correctly kept, and the history of requests to it, one after the other."""

    def __init__(self) -> None:
        self.history = History(FIRST)
        self.index = FIRST
        self.time = 0.0
        self.files: dict[str, File] = {}
        self.events: list[tuple[float, dict[str, object]]] = []

    def request(self, kind: str, key: str, value: str = "", **options: object) -> Request:
        self.time += 2
        request = Request(kind, key, value, began=self.time - 1, ended=self.time, **options)
        request.server = len(self.history.requests) % 3
        self.history.requests.append(request)
        return request

    def event(self, action: str, key: str, value: str = "") -> dict[str, object]:
        self.index += 1
        before = self.files.pop(key, None)
        node = {"key": key, "modifiedIndex": self.index, "createdIndex": self.index}
        if action not in REMOVALS:
            node |= {"value": value}
            self.files[key] = File(value, self.index, self.index)
        event: dict[str, object] = {"action": action, "node": node}
        if before is not None:
            event["prevNode"] = {
                "key": key,
                "value": before.value,
                "modifiedIndex": before.modified,
                "createdIndex": before.created,
            }
        self.events.append((self.time, event))
        return event

    def write(
        self, action: str, kind: str, key: str, value: str = "", **options: object
    ) -> Request:
        request = self.request(kind, key, value, **options)
        request.body = self.event(action, key, value)
        request.status, request.index = 201, self.index
        return request

    def read(self, kind: str, key: str) -> Request:
        request = self.request(kind, key)
        file = self.files.get(key)
        if file is None:
            return self.refuse(request, 404, 100)
        node = {
            "key": key,
            "value": file.value,
            "createdIndex": file.created,
            "modifiedIndex": file.modified,
        }
        request.status, request.index = 200, self.index
        request.body = {"action": "get", "node": node}
        return request

    def refuse(self, request: Request, status: int, code: int) -> Request:
        request.status, request.index = status, self.index
        request.body = {"errorCode": code, "index": self.index}
        return request

    def close(self) -> History:
        for server in SERVERS:
            watched = Watched(server, FIRST)
            for time, event in self.events:
                watched.facts.append(fact_of(event))
                watched.times.append(time)
            self.history.watched.append(watched)
            self.history.listings.append(Listing(server, self.index, dict(self.files), 100.0))
        return self.history


@pytest.fixture
def history() -> History:
    """One of each kind of request."""
    shop = Shop()
    shop.write("create", "put", "/u/1", "one", condition={"prevExist": "false"})
    shop.write("set", "put", "/u/2", "two")
    shop.write("create", "post", "/q/11", "three")
    shop.write("set", "put", "/t/1", "short", ttl_s=2)
    shop.read("quorum", "/u/1")
    shop.read("local", "/u/2")
    shop.time += 4
    shop.event("expire", "/t/1")
    shop.write("compareAndSwap", "put", "/u/1", "four", condition={"prevIndex": "11"})
    swap = shop.request("put", "/u/1", "five", condition={"prevIndex": "11"})
    shop.refuse(swap, 412, 101)
    shop.refuse(shop.request("put", "/u/2", "six", condition={"prevExist": "false"}), 412, 105)
    shop.write("delete", "delete", "/u/2")
    shop.read("quorum", "/u/2")
    # Without a response: one was done, one was not.
    shop.request("put", "/u/3", "seven")
    shop.event("set", "/u/3", "seven")
    shop.request("put", "/u/4", "eight").status = 500
    shop.write("set", "put", "/u/5", "last")
    return shop.close()


def of(history: History, value: str) -> Request:
    (found,) = [one for one in history.requests if one.value == value]
    return found


def without(history: History, index: int) -> None:
    """No watch has seen an event, and none of what it made is there."""
    for watched in history.watched:
        kept = [place for place, fact in enumerate(watched.facts) if fact.index != index]
        watched.times = [watched.times[place] for place in kept]
        watched.facts = [watched.facts[place] for place in kept]
    for listing in history.listings:
        listing.files = {k: file for k, file in listing.files.items() if file.modified != index}


def again(history: History, index: int) -> None:
    """An event has happened once more, at the end."""
    last = history.listings[0].index
    for watched in history.watched:
        (fact,) = [fact for fact in watched.facts if fact.index == index]
        watched.facts.append(fact._replace(index=last + 1))
        watched.times.append(99.0)
    for listing in history.listings:
        listing.index += 1
        if fact.action not in REMOVALS:
            listing.files[fact.key] = File(fact.value or "", fact.created, last + 1)


def swapped(history: History) -> None:
    facts = history.watched[1].facts
    facts[3], facts[4] = facts[4], facts[3]


def refused(history: History, value: str) -> None:
    request = of(history, value)
    request.status, request.body = 412, {"errorCode": 105, "index": request.point - 1}


def moved(history: History, value: str, to: str) -> None:
    """One acknowledged write has the index of another."""
    of(history, value).body["node"]["modifiedIndex"] = of(history, to).point


def read_before(history: History) -> None:
    """A quorum read, sent after a write, has shown what was there before it."""
    shop_read = next(one for one in history.requests if one.kind == "quorum")
    shop_read.began = shop_read.ended = of(history, "four").ended + 0.5


WRONG: dict[str, tuple[str, Callable[[History], object]]] = {
    "an acknowledged write is not there": (
        "lost",
        lambda history: without(history, of(history, "one").point),
    ),
    "an acknowledged write has become another one": (
        "lost",
        lambda history: of(history, "two").body["node"].update(value="other"),
    ),
    "a response has an index beyond the end": (
        "lost",
        lambda history: setattr(history.requests[4], "index", 99),
    ),
    "a write was done twice": ("twice", lambda history: again(history, of(history, "two").point)),
    "a write without a response was done twice": (
        "twice",
        lambda history: again(history, history.watched[0].facts[7].index),
    ),
    "a removal was done twice": (
        "twice",
        lambda history: again(history, history.watched[0].facts[6].index),
    ),
    "a refused write was done": ("refused and done", lambda history: refused(history, "two")),
    "an event of no request": (
        "unexplained",
        lambda history: history.requests.remove(of(history, "seven")),
    ),
    "the end of a key without a TTL": (
        "unexplained",
        lambda history: setattr(of(history, "short"), "ttl_s", 0),
    ),
    "a quorum read was stale": ("stale", read_before),
    "a read shows another value": (
        "stale",
        lambda history: history.requests[4].body["node"].update(value="other"),
    ),
    "a local read shows what was never there at its index": (
        "stale",
        lambda history: setattr(history.requests[5], "index", FIRST + 1),
    ),
    "a key that is there was said to be missing": (
        "stale",
        lambda history: history.requests[4].__class__.__init__(
            history.requests[4], "quorum", "/u/1", status=404, body={"errorCode": 100, "index": 14}
        ),
    ),
    "a swap was refused that matched": (
        "stale",
        lambda history: of(history, "five").condition.update(prevIndex="16"),
    ),
    "a creation was refused though nothing was there": (
        "stale",
        lambda history: setattr(of(history, "six"), "key", "/u/9"),
    ),
    "two writes have one index": ("index twice", lambda history: moved(history, "last", "two")),
    "two servers have different events at one index": (
        "index twice",
        lambda history: history.watched[2].facts.__setitem__(
            1, history.watched[2].facts[1]._replace(value="other")
        ),
    ),
    "an index was left out": ("gap", lambda history: without(history, FIRST + 8)),
    "one watch lacks an event": ("watch", lambda history: history.watched[1].facts.pop(3)),
    "one watch has repeated an event": (
        "watch",
        lambda history: history.watched[1].facts.insert(3, history.watched[1].facts[2]),
    ),
    "one watch has its events out of order": ("watch", swapped),
    "a key has ended too early": (
        "expiry",
        lambda history: setattr(of(history, "short"), "ttl_s", 60),
    ),
    "a key has not ended": ("expiry", lambda history: without(history, FIRST + 5)),
    "a server lacks a key": ("differs", lambda history: history.listings[2].files.pop("/u/5")),
    "a server has a key too many": (
        "differs",
        lambda history: history.listings[2].files.update({"/x": File("x", 12, 12)}),
    ),
    "the digests are not the same": ("differs", lambda history: history.digests.extend("aab")),
    "a process has ended": ("failed", lambda history: history.failures.append("kvd1")),
    "a server is behind": ("differs", lambda history: setattr(history.listings[1], "index", 15)),
}


def test_what_holds_is_found_good(history: History) -> None:
    assert check(history) == []


def test_a_watch_may_begin_and_end_anywhere(history: History) -> None:
    facts, times = history.watched[1].facts, history.watched[1].times
    history.watched[1] = Watched(1, FIRST + 3, facts[3:6], times[3:6])
    history.watched.append(Watched(1, FIRST + 6, [], []))
    assert check(history) == []


def test_a_write_that_is_still_open_may_be_done_later(history: History) -> None:
    of(history, "last").status = 0
    assert check(history) == []


def test_etcd_may_take_indexes_for_itself(history: History) -> None:
    for watched in history.watched:
        watched.after -= 1
    history.first -= 1
    assert [kind for kind, _ in check(history)] == ["gap"]
    history.unseen_max = 1
    assert check(history) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_hold_is_found_out(history: History, name: str) -> None:
    kind, spoil = WRONG[name]
    spoil(history)
    for watched in history.watched:
        watched.times = (watched.times * 2)[: len(watched.facts)]
    problems = check(history)
    assert kind in {found for found, _ in problems}, problems
    assert counted(problems)[kind] > 0


def test_each_kind_of_problem_has_been_tried() -> None:
    assert {kind for kind, _ in WRONG.values()} == KINDS.keys()


def test_checking_changes_nothing(history: History) -> None:
    before = copy.deepcopy(history)
    check(history)
    assert history == before
