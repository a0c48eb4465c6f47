"""Ledger of a trial: one order of all events, into which each response and each watch must fit.

Each write has a value of its own and is sent once. So an event names the request that it comes
from, a value in two events was written twice, and what a server refused must be in none.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from kvd.testing.crash.facts import REMOVALS, Fact, File, fact_of

LATE_S = 10.0
"""Seconds after its end at which a key may still be there: a leader is elected meanwhile."""

KINDS = {
    "lost": "acknowledged, and not there",
    "twice": "one request, done twice",
    "refused and done": "refused, and there",
    "unexplained": "an event that no request explains",
    "stale": "a response that contradicts an earlier one, or the state at its index",
    "index twice": "one index for two writes, or for two events",
    "gap": "an index without an event",
    "watch": "a watch that lacks an event, repeats one, or has them out of order",
    "expiry": "a key that ended too early, or not at all",
    "differs": "a server whose keys are not what the events make of them",
    "failed": "a process that has ended though no fault has ended it, or a bug in its log",
}
"""The kinds of problems."""


@dataclass(slots=True)
class Request:
    """A request, and its response if there was one; times are of one monotonic clock.

    Attributes:
        kind: put, post, delete, quorum (a read) or local (a read).
        value: What it writes; no other request writes the same.
        condition: `prevExist`, `prevIndex` or `prevValue`.
        status: 0 without a response.
        index: The header X-Etcd-Index.
    """

    kind: str
    key: str
    value: str = ""
    condition: dict[str, str] = field(default_factory=dict)
    ttl_s: int = 0
    server: int = 0
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    index: int = 0
    body: Any = None

    @property
    def writes(self) -> bool:
        return self.kind in ("put", "post", "delete")

    @property
    def is_acknowledged(self) -> bool:
        return self.status in (200, 201)

    @property
    def is_refused(self) -> bool:
        """Whether it was refused for good: what ended with 5xx may happen later."""
        return 400 <= self.status < 500

    @property
    def is_open(self) -> bool:
        return not self.is_acknowledged and not self.is_refused

    @property
    def point(self) -> int:
        """Its place in the order of events, 0 if unknown."""
        if self.is_acknowledged:
            return int(self.body["node"]["modifiedIndex"]) if self.writes else self.index
        return int(self.body.get("index", 0)) if self.is_refused else 0

    def __str__(self) -> str:
        return f"{self.kind} {self.key} {self.value} at server {self.server}: {self.status}"


@dataclass(slots=True)
class Watched:
    """Events that one server sent to one watch, which began behind an index."""

    server: int
    after: int
    facts: list[Fact] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Listing:
    """All keys of a server at the end."""

    server: int
    index: int
    files: dict[str, File]
    time: float = 0.0


@dataclass(slots=True)
class History:
    """What clients have seen of one trial.

    Attributes:
        first: The index before it.
        unseen_max: The number of indexes that the servers may take for themselves (etcd's
            members publish their URLs in the same store).
        digests: Those of all servers at the end.
        failures: What was wrong with their processes.
    """

    first: int
    requests: list[Request] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)
    unseen_max: int = 0
    digests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


Problem = tuple[str, str]
"""A kind of `KINDS`, and what it was."""


def check(history: History) -> list[Problem]:
    """Return all that is wrong with a history."""
    return [*_Ledger(history).problems()]


class _Ledger:
    def __init__(self, history: History) -> None:
        self._history = history
        self._facts: dict[int, Fact] = {}
        self._conflicts: list[Problem] = []
        for watched in history.watched:
            for fact in watched.facts:
                known = self._facts.setdefault(fact.index, fact)
                if known != fact:
                    self._conflicts.append(("index twice", f"{known} and {fact}"))
        self._indexes = sorted(self._facts)
        self._versions: dict[str, list[tuple[int, File | None]]] = {}
        for index in self._indexes:
            fact = self._facts[index]
            self._versions.setdefault(fact.key, []).append((index, _file(fact)))
        seen = self._indexes[-1] if self._indexes else history.first
        self._last = max([one.index for one in history.listings], default=seen)

    def problems(self) -> Iterator[Problem]:
        yield from self._conflicts
        yield from self._gaps()
        for watched in self._history.watched:
            yield from self._of_watch(watched)
        yield from self._of_writes()
        yield from self._of_events()
        yield from self._of_order()
        for request in self._history.requests:
            yield from self._of_answer(request)
        yield from self._of_ends()
        yield from self._of_listings()
        if len(set(self._history.digests)) > 1:
            yield "differs", f"the digests are {', '.join(self._history.digests)}"
        yield from (("failed", text) for text in self._history.failures)

    def _gaps(self) -> Iterator[Problem]:
        wanted = range(self._history.first + 1, self._last + 1)
        missing = [index for index in wanted if index not in self._facts]
        if len(missing) > self._history.unseen_max:
            yield "gap", f"{len(missing)} indexes without an event, the first is {missing[0]}"

    def _of_watch(self, watched: Watched) -> Iterator[Problem]:
        place = f"the watch of server {watched.server} from {watched.after} on"
        indexes = [watched.after, *(fact.index for fact in watched.facts)]
        for before, after in pairwise(indexes):
            if after <= before:
                yield "watch", f"{place}: {after} follows {before}"
        seen = set(indexes)
        begin, end = (bisect_right(self._indexes, bound) for bound in (indexes[0], indexes[-1]))
        for index in self._indexes[begin:end]:
            if index not in seen:
                yield "watch", f"{place}: {self._facts[index]} is missing"

    def _of_writes(self) -> Iterator[Problem]:
        taken: Counter[int] = Counter()
        for request in self._history.requests:
            if request.writes and request.is_acknowledged:
                taken[request.point] += 1
                fact = fact_of(request.body)
                if self._facts.get(request.point) != fact:
                    found = self._facts.get(request.point)
                    yield "lost", f"{request}: {fact}; there is {found}"
        for index, count in taken.items():
            if count > 1:
                yield "index twice", f"{count} acknowledged writes have index {index}"

    def _of_events(self) -> Iterator[Problem]:
        writes = {one.value: one for one in self._history.requests if one.writes and one.value}
        deletes = Counter(
            one.key for one in self._history.requests if one.kind == "delete" and not one.is_refused
        )
        refused = {
            one.key for one in self._history.requests if one.kind == "delete" and one.is_refused
        }
        leased = {one.key for one in self._history.requests if one.ttl_s}
        seen: set[str] = set()
        for index in self._indexes:
            fact = self._facts[index]
            if fact.action == "expire":
                if fact.key not in leased:
                    yield "unexplained", f"no request has given it a TTL: {fact}"
            elif fact.action in REMOVALS:
                deletes[fact.key] -= 1
                if deletes[fact.key] < 0:
                    yield "refused and done" if fact.key in refused else "twice", f"{fact}"
            elif (request := writes.get(fact.value or "")) is None:
                yield "unexplained", f"{fact}"
            else:
                if request.value in seen:
                    yield "twice", f"{request}: {fact}"
                seen.add(request.value)
                if request.is_refused:
                    yield "refused and done", f"{request}: {fact}"

    def _of_order(self) -> Iterator[Problem]:
        """What begins after a response has a later place than that, or the same if it only reads.

        Local reads may be behind.
        """
        placed = [one for one in self._history.requests if one.kind != "local" and one.point]
        by_end = sorted(placed, key=lambda one: one.ended)
        floor = place = 0
        for request in sorted(placed, key=lambda one: one.began):
            while by_end[place].ended < request.began:
                floor = max(floor, by_end[place].point)
                place += 1
            is_write = request.writes and request.is_acknowledged
            if request.point < floor + is_write:
                yield "stale", f"{request} at {request.point}: {floor} was known before it was sent"

    def _of_answer(self, request: Request) -> Iterator[Problem]:
        point = request.point
        if not point or (request.writes and request.is_acknowledged):
            return
        if point > self._last:
            yield "lost", f"{request} at {point}: the last index is {self._last}"
            return
        file = self._at(request.key, point)
        if request.is_acknowledged:
            node = request.body["node"]
            seen = File(node.get("value", ""), node["createdIndex"], node["modifiedIndex"])
            if seen != file:
                yield "stale", f"{request} at {point}: {seen} was read, and there was {file}"
        elif _contradicts(request, file):
            yield "stale", f"{request} at {point}: {request.body}, and there was {file}"

    def _at(self, key: str, index: int) -> File | None:
        versions = self._versions.get(key, [])
        place = bisect_right(versions, index, key=lambda version: version[0])
        return versions[place - 1][1] if place else None

    def _of_ends(self) -> Iterator[Problem]:
        ended: dict[str, float] = {}
        for watched in self._history.watched:
            for fact, time in zip(watched.facts, watched.times, strict=True):
                if fact.action == "expire":
                    ended[fact.key] = min(time, ended.get(fact.key, time))
        stopped = min([one.time for one in self._history.listings], default=0.0)
        for request in self._history.requests:
            if not request.ttl_s:
                continue
            if ended.get(request.key, float("inf")) < request.began + request.ttl_s:
                yield "expiry", f"{request}: ended before its {request.ttl_s} s were over"
            is_over = request.ended + request.ttl_s + LATE_S < stopped
            if request.is_acknowledged and is_over and request.key not in ended:
                yield "expiry", f"{request}: has not ended"

    def _of_listings(self) -> Iterator[Problem]:
        expected = {
            key: file
            for key, versions in self._versions.items()
            if (file := versions[-1][1]) is not None
        }
        for listing in self._history.listings:
            place = f"server {listing.server}"
            if listing.index != self._last:
                yield "differs", f"{place} ends at index {listing.index}, another at {self._last}"
            odd = sorted({key for key, _ in listing.files.items() ^ expected.items()})
            if odd:
                found, wanted = listing.files.get(odd[0]), expected.get(odd[0])
                yield "differs", f"{place}: {len(odd)} keys; {odd[0]} is {found}, not {wanted}"


def _file(fact: Fact) -> File | None:
    if fact.action in REMOVALS or fact.dir:
        return None
    return File(fact.value or "", fact.created, fact.index)


def _contradicts(request: Request, file: File | None) -> bool:
    """Whether a file is not what a refusal says of it."""
    condition = request.condition
    match request.body.get("errorCode"):
        case 100:
            return file is not None
        case 101:
            index, value = condition.get("prevIndex"), condition.get("prevValue")
            return file is not None and (
                index in (None, str(file.modified)) and value in (None, file.value)
            )
        case 105:
            return file is None
        case _:
            return False


def counted(problems: Iterable[Problem]) -> dict[str, int]:
    """Return how many problems there are of each kind."""
    counts = Counter(kind for kind, _ in problems)
    return {kind: counts[kind] for kind in KINDS}
