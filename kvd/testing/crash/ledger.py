"""The ledger: one order of events, compared with every response that a client received.

The index is a witness of the order in which things happened, so linearizability can be decided in
one pass instead of by search: every response names its point in the order (a write its own index, a
read or a refusal the index it was decided at). The history is linearizable if

- each response is what the state at its point makes it, and
- no response that came before a request was sent has a later point than that request's.

A write without a response may have happened or not; if it did, it is one of the events that no
response accounts for, and there may be no other such events.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from kvd.testing.crash.facts import (
    REMOVALS,
    Fact,
    File,
    State,
    Violation,
    events_between,
    fact_of,
    files_of,
)
from kvd.testing.crash.requests import DISCONNECTED, Connection, Request


class Ledger:
    """All requests and events of one store that have been checked so far.

    It begins with an empty store (`begin` with another one), and must see every write from then
    on. It cannot follow what watches do not report: refreshes of a TTL, and keys that are hidden
    by an underscore.

    Attributes:
        state: the files after the last event.
        facts: all events so far.
        acked: the number of acknowledged writes.
        in_doubt: the number of writes without a response.
        happened_unanswered: how many of these have happened.
    """

    def __init__(self) -> None:
        self.state = State()
        self.facts: list[Fact] = []
        self.acked = 0
        self.in_doubt = 0
        self.happened_unanswered = 0
        self._versions: dict[str, list[tuple[int, File | None]]] = {}
        # Keys that were given a TTL, and directories whose in-order keys were.
        self._leased: set[str] = set()
        self._knows_leases = True

    def begin(self, url: str) -> None:
        """Begin with what a server has now, instead of with an empty store.

        Its keys may have TTLs, so from here on each key may expire.

        Raises:
            Violation: the server does not answer the listing of all keys.
        """
        with Connection(url) as connection:
            seen = _all_of(connection)
        self._knows_leases = False
        files = files_of(seen.body["node"])
        self.state.begin(files, seen.index)
        self._versions = {key: [(seen.index, file)] for key, file in files.items()}

    def check(self, requests: Iterable[Request], url: str) -> None:
        """Check what was requested before a restart against what the server has after it.

        Args:
            requests: all requests since the last check, in any order. None may be under way.
            url: the server, which has been started again.

        Raises:
            Violation: a promise is broken, or the server does not respond (as one with users, where
                a guest may not read all).
            LookupError: there have been more events since the last check than the server keeps:
                start it with a larger `--event-history-limit`.
        """
        try:
            with Connection(url) as connection:
                seen = _all_of(connection)
            facts = events_between(url, self.state.index + 1, seen.index)
        except DISCONNECTED as error:
            raise Violation(f"the restarted server does not respond: {error!r}") from None
        self.settle(requests, facts, files_of(seen.body["node"]))

    def settle(
        self, requests: Iterable[Request], facts: list[Fact], files: dict[str, File]
    ) -> None:
        """Check requests against events and files that were found in whatever way.

        Args:
            requests: all requests since the last check.
            facts: the events since then.
            files: all files after them.

        Raises:
            Violation: a promise is broken.
        """
        ops = list(requests)
        _refuse_unreported(ops)
        self._leased |= {op.key.rstrip("/") for op in ops if "ttl" in op.params}
        by_index = self._take(facts)
        points = [(op, self._point(op, by_index)) for op in ops if op.status]
        unanswered = dict(by_index)
        for op, point in points:
            if op.acked and op.method != "GET":
                if point not in unanswered:
                    raise Violation(f"two acknowledged writes have the index {point}")
                del unanswered[point]
                self.acked += 1
        doubts = self._match(unanswered, [op for op in ops if op.in_doubt])
        _check_order([(op, point) for op, point in points if point] + doubts)
        if files != self.state.files:
            odd = {key for key, _ in files.items() ^ self.state.files.items()}
            key = sorted(odd)[0]
            raise Violation(
                f"the keys differ from what the events make of them, {len(odd)} in all: {key} is "
                f"{str(files.get(key))[:90]}, expected {str(self.state.files.get(key))[:90]}"
            )

    def _take(self, facts: list[Fact]) -> dict[int, Fact]:
        for fact in facts:
            for key in self.state.apply(fact):
                file = self.state.files.get(key)
                self._versions.setdefault(key, []).append((fact.index, file))
        self.facts += facts
        return {fact.index: fact for fact in facts}

    def _point(self, op: Request, by_index: dict[int, Fact]) -> int:
        try:
            return self._check_answer(op, by_index)
        except (LookupError, TypeError, AttributeError) as error:
            raise Violation(
                f"{op.method} {op.key} got a response in no form of etcd's: "
                f"{op.status} {str(op.body)[:160]}"
            ) from error

    def _check_answer(self, op: Request, by_index: dict[int, Fact]) -> int:
        """Return the point of a response, 0 where it has none."""
        if op.acked and op.method != "GET":
            fact = fact_of(op.body)
            if by_index.get(fact.index) != fact:
                raise Violation(
                    f"acknowledged and lost: {str(fact)[:160]}; index {fact.index} is now "
                    f"{str(by_index.get(fact.index))[:160]}, the last is {self.state.index}"
                )
            return fact.index
        if op.status >= 500 or not (op.acked or "index" in op.body):
            return 0
        point = op.index if op.acked else int(op.body["index"])
        if point > self.state.index:
            raise Violation(f"index {point} was told, the store is at {self.state.index} now")
        file = self._at(op.key, point)
        problem = _read_wrongly(op, file) if op.acked else self._refused_wrongly(op, file)
        if problem:
            raise Violation(f"{op.method} {op.key} at {point}, where it was {file}: {problem}")
        return point

    def _at(self, key: str, index: int) -> File | None:
        versions = self._versions.get(key, [])
        place = bisect_right(versions, index, key=lambda version: version[0])
        return versions[place - 1][1] if place else None

    def _refused_wrongly(self, op: Request, file: File | None) -> str:
        match op.body["errorCode"]:
            case 100 if file is not None:
                return "said to be missing"
            case 101 if file is not None and _matches(op, file):
                return "the swap was refused though it matched"
            case 105 if file is None and op.key.rstrip("/") not in self.state.directories:
                return "refused as existing"
        return ""

    def _match(
        self, unanswered: dict[int, Fact], doubts: list[Request]
    ) -> list[tuple[Request, int]]:
        """Find for each event without a response the one request it can come from."""
        self.in_doubt += len(doubts)
        waiting = list(doubts)
        found: list[tuple[Request, int]] = []
        for index, fact in sorted(unanswered.items()):
            if fact.action == "expire":
                self._check_lease(fact)
                continue
            op = next((op for op in waiting if _explains(op, fact)), None)
            if op is None:
                raise Violation(f"no request explains this event: {str(fact)[:160]}")
            waiting.remove(op)
            found.append((op, index))
        self.happened_unanswered += len(found)
        return found

    def _check_lease(self, fact: Fact) -> None:
        """Raise Violation for the end of a key that no request has given a TTL."""
        above = fact.key.rpartition("/")[0]
        if self._knows_leases and not {fact.key, above} & self._leased:
            raise Violation(f"no request has given this key a TTL: {str(fact)[:160]}")


def _all_of(connection: Connection) -> Request:
    seen = connection.get("/", recursive="true", quorum="true")
    if not seen.acked:
        raise Violation(f"the server does not list its keys: {seen.status} {str(seen.body)[:160]}")
    return seen


def _refuse_unreported(requests: list[Request]) -> None:
    for request in requests:
        if request.method != "GET" and ("refresh" in request.params or "/_" in request.key):
            raise ValueError(
                f"{request.method} {request.key}: watches report no refreshes and no hidden keys"
            )


def _matches(request: Request, file: File) -> bool:
    """Whether a file is what a swap requires."""
    index, value = request.params.get("prevIndex"), request.params.get("prevValue")
    return (index in (None, str(file.modified))) and (value in (None, file.value))


def _read_wrongly(op: Request, file: File | None) -> str:
    node = op.body["node"]
    seen = File(node.get("value", ""), node["createdIndex"], node["modifiedIndex"])
    return "" if node.get("dir") or seen == file else f"read as {seen}"


def _explains(op: Request, fact: Fact) -> bool:
    if op.method == "DELETE":
        return fact.action in REMOVALS and fact.key == op.key
    if fact.action in REMOVALS or fact.dir != (op.params.get("dir") == "true"):
        return False
    if not fact.dir and fact.value != op.params.get("value", ""):
        return False
    return fact.key.startswith(op.key + "/") if op.method == "POST" else fact.key == op.key


def _check_order(points: list[tuple[Request, int]]) -> None:
    """Check that nothing has an earlier point than what was over before it began."""
    starts = sorted(points, key=lambda item: item[0].start)
    ends = sorted(points, key=lambda item: item[0].end)
    latest = place = 0
    for op, point in starts:
        while ends[place][0].end < op.start:
            latest = max(latest, ends[place][1])
            place += 1
        is_write = (op.acked or op.in_doubt) and op.method != "GET"
        if point < latest or (is_write and point == latest):
            raise Violation(
                f"{op.method} {op.key} has its place at {point}, though {latest} had been told "
                "before it was sent: not linearizable"
            )
