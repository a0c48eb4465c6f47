"""The ledger: one order of events, compared with every answer that a client received.

The index is a witness of the order in which things happened, so linearizability can be decided in
one pass instead of by search: every answer names its point in the order (a write its own index, a
read or a refusal the index it was decided at). The history is linearizable if

- each answer is what the state at its point makes it, and
- no answer that came before a request was sent has a later point than that request's.

A write without an answer may have happened or not; if it did, it is one of the events that no
answer accounts for, and there may be no other such events.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.crash.lab.experiment import Violation
from tests.crash.lab.workload import Op

REMOVALS = ("delete", "compareAndDelete", "expire")


class Fact(NamedTuple):
    """One event, as far as a client can see it."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    action: str
    key: str
    value: str | None
    dir: bool
    created: int
    prev_value: str | None
    prev_modified: int


class File(NamedTuple):
    """A file of the state: what a GET shows of it."""

    value: str
    created: int
    modified: int


def fact_of(event: Any) -> Fact:
    """Return the fact in the JSON of an event."""
    node, prev = event["node"], event.get("prevNode") or {}
    is_dir = bool(node.get("dir"))
    action = event["action"]
    value = None if is_dir or action in REMOVALS else node.get("value", "")
    prev_value = None if not prev or prev.get("dir") else prev.get("value", "")
    return Fact(
        node["modifiedIndex"],
        action,
        node["key"],
        value,
        is_dir,
        node["createdIndex"],
        prev_value,
        prev.get("modifiedIndex", 0),
    )


def files_of(node: Any) -> dict[str, File]:
    """Return the files in the JSON of a recursive GET."""
    found: dict[str, File] = {}
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node.get("dir"):
            waiting += node.get("nodes", [])
        else:
            found[node["key"]] = File(
                node.get("value", ""), node["createdIndex"], node["modifiedIndex"]
            )
    return found


class State:
    """The files after a number of events."""

    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.index = 1

    def apply(self, fact: Fact) -> list[str]:
        """Take one event more, which must be the next; return the keys it changed."""
        if fact.index != self.index + 1:
            raise Violation(f"event {fact.index} follows event {self.index}: a gap or a repetition")
        before = self.files.get(fact.key)
        if before is not None and (before.value, before.modified) != (
            fact.prev_value,
            fact.prev_modified,
        ):
            raise Violation(
                f"event {fact.index} says that {fact.key} was at {fact.prev_modified} before it, "
                f"but it was at {before.modified}"
            )
        self.index = fact.index
        if fact.action not in REMOVALS:
            if not fact.dir:
                self.files[fact.key] = File(fact.value or "", fact.created, fact.index)
            return [fact.key]
        below = fact.key.rstrip("/") + "/"
        gone = [
            key for key in self.files if key == fact.key or (fact.dir and key.startswith(below))
        ]
        for key in gone:
            del self.files[key]
        return gone


class Ledger:
    """Everything that has been settled so far."""

    def __init__(self) -> None:
        self.state = State()
        self.facts: list[Fact] = []
        self._versions: dict[str, list[tuple[int, File | None]]] = {}
        self.acked = 0
        self.in_doubt = 0
        self.happened_unanswered = 0

    def settle(self, ops: Iterable[Op], facts: list[Fact], files: dict[str, File]) -> None:
        """Hold one life of a server against what was found after it.

        Args:
            ops: What was asked in that life.
            facts: The events since the last `settle`, as the restarted server tells them.
            files: All files, as it shows them.

        Raises:
            Violation: A promise is broken.
        """
        ops = list(ops)
        by_index = self._take(facts)
        points = [(op, self._check_answer(op, by_index)) for op in ops if op.status]
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
                f"{len(odd)} keys differ from what the events make of them: {key} is "
                f"{str(files.get(key))[:90]}, expected {str(self.state.files.get(key))[:90]}"
            )

    def _take(self, facts: list[Fact]) -> dict[int, Fact]:
        for fact in facts:
            for key in self.state.apply(fact):
                file = self.state.files.get(key)
                self._versions.setdefault(key, []).append((fact.index, file))
        self.facts += facts
        return {fact.index: fact for fact in facts}

    def _check_answer(self, op: Op, by_index: dict[int, Fact]) -> int:
        """Return the point of an answer, 0 where it has none."""
        if op.acked and op.method != "GET":
            told = fact_of(op.body)
            if by_index.get(told.index) != told:
                raise Violation(
                    f"acknowledged and lost: {str(told)[:160]}; index {told.index} is now "
                    f"{str(by_index.get(told.index))[:160]}, the last is {self.state.index}"
                )
            return told.index
        if op.status >= 500:
            return 0
        point = op.index if op.acked else int(op.body["index"])
        if point > self.state.index:
            raise Violation(f"index {point} was told, the store is at {self.state.index} now")
        file = self._at(op.key, point)
        problem = _read_wrongly(op, file) if op.acked else _refused_wrongly(op, file)
        if problem:
            raise Violation(f"{op.method} {op.key} at {point}, where it was {file}: {problem}")
        return point

    def _at(self, key: str, index: int) -> File | None:
        versions = self._versions.get(key, [])
        place = bisect_right(versions, index, key=lambda version: version[0])
        return versions[place - 1][1] if place else None

    def _match(self, unanswered: dict[int, Fact], doubts: list[Op]) -> list[tuple[Op, int]]:
        """Find for each event without an answer the one request it can come from."""
        self.in_doubt += len(doubts)
        waiting = list(doubts)
        found: list[tuple[Op, int]] = []
        for index, fact in sorted(unanswered.items()):
            if fact.action == "expire":
                continue
            op = next((op for op in waiting if _explains(op, fact)), None)
            if op is None:
                raise Violation(f"nobody asked for this event: {str(fact)[:160]}")
            waiting.remove(op)
            found.append((op, index))
        self.happened_unanswered += len(found)
        return found


def _read_wrongly(op: Op, file: File | None) -> str:
    node = op.body["node"]
    seen = File(node.get("value", ""), node["createdIndex"], node["modifiedIndex"])
    return "" if node.get("dir") or seen == file else f"read as {seen}"


def _refused_wrongly(op: Op, file: File | None) -> str:
    match op.body["errorCode"]:
        case 100 if file is not None:
            return "said to be missing"
        case 101 if file is not None and str(file.modified) == op.params.get("prevIndex"):
            return "the swap was refused though it matched"
        case 105 if file is None and op.key.startswith("/k/"):
            return "refused as existing"
    return ""


def _explains(op: Op, fact: Fact) -> bool:
    if op.method == "DELETE":
        return fact.action in REMOVALS and fact.key == op.key
    if fact.value != op.params["value"]:
        return False
    return fact.key.startswith(op.key + "/") if op.method == "POST" else fact.key == op.key


def _check_order(points: list[tuple[Op, int]]) -> None:
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
