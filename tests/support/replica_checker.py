"""A checker of the responses of several replicas, against the log that these have written.

It finds writes that are lost or done twice, reads and refusals by a state that was not the last,
gaps in the history of a replica, an index given twice, and responses that come late or not at all.
"""

import bisect
from typing import NamedTuple

from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS
from kvd.v2.commands import CompareAndSwap, Create, Delete, Set, Transaction, Update
from kvd.v2.documents.decision import Reply
from kvd.v2.errors import RAFT_INTERNAL, ApiError, RouteError


class Wrong(AssertionError):
    """A promise was broken; the text says which, and by what."""


class Asked(NamedTuple):
    """A command of a client, and what was known when it was sent."""

    number: int
    command: object
    value: bytes
    """Of each record of it, and of no other."""
    sent_s: float
    acknowledged: int
    """The highest index that any client had seen."""


class Checker:
    """Notes everything, and compares it at the end."""

    def __init__(self, *, late_s):
        self._late_s = late_s
        self.history = {}
        self._times = {}
        self.acknowledged = 0
        self._open = {}
        self._done = []
        self._unknown = []
        self.counts = {"done": 0, "refused": 0, "unknown": 0, "reads": 0, "timeouts": 0, "cut": 0}

    # What clients see.

    def sends(self, number, command, value, now):
        asked = Asked(number, command, value, now, self.acknowledged)
        self._open[number] = asked
        return asked

    def responds(self, asked, outcome, applied_index, now):
        """Note a response, given by a replica that has applied so much."""
        del self._open[asked.number]
        if now - asked.sent_s > self._late_s:
            raise Wrong(f"late: {asked} got {outcome} after {now - asked.sent_s:.2f} s")
        if isinstance(outcome, ApiError | RouteError) and not is_definite(outcome):
            self.counts["unknown"] += 1
            self._unknown.append(asked)
            return
        self._done.append((asked, outcome))
        events = events_of(outcome)
        self.counts["done" if events or isinstance(outcome, Reply) else "refused"] += 1
        for event in events:
            index = event.change.index
            if index <= asked.acknowledged:
                raise Wrong(f"order: {asked} got {event}")
            if index > applied_index:
                raise Wrong(f"early: {asked} got {event}, and its replica is at {applied_index}")
            self.acknowledged = max(self.acknowledged, index)
        if isinstance(outcome, ApiError):
            if outcome.index < asked.acknowledged:
                raise Wrong(f"stale: {asked} got {outcome!r} at index {outcome.index}")
            if outcome.index > applied_index:
                raise Wrong(f"early: {asked} got {outcome!r}, its replica is at {applied_index}")
            self.acknowledged = max(self.acknowledged, outcome.index)

    def dies(self, asked):
        """Note that no response will come: the client's replica has ended."""
        if self._open.pop(asked.number, None) is not None:
            self.counts["cut"] += 1
            self._unknown.append(asked)

    def reads(self, acknowledged, index):
        """Note a quorum read at an index, which was sent when so much had been acknowledged."""
        self.counts["reads"] += 1
        if index < acknowledged:
            raise Wrong(f"stale: a read at index {index}, {acknowledged} was acknowledged before")
        self.acknowledged = max(self.acknowledged, index)

    # What replicas do.

    def follow(self, first):
        """Return an observer of a replica that goes on behind the index `first`."""
        return _Observer(self, first)

    def applies(self, event):
        change = event.change
        known = self.history.get(change.index)
        if known is None:
            self.history[change.index] = event
            if change.value:
                self._times.setdefault(change.value, []).append(change.index)
        elif known.change != change:
            raise Wrong(f"index given twice: {known} and {event}")

    # At the end.

    def check(self, states):
        """Compare all with the histories of the replicas, which must have come to the same."""
        if self._open:
            raise Wrong(f"no response to {[*self._open.values()]}")
        indexes = sorted(self.history)
        if indexes and indexes != [*range(indexes[0], indexes[-1] + 1)]:
            raise Wrong("gap: the history of all replicas has one")
        if len(set(states)) > 1:
            raise Wrong(f"unequal: the replicas hold {states}")
        versions = self._versions()
        for asked, outcome in self._done:
            self._check_one(asked, outcome, versions)
        for asked in self._unknown:
            times, command = self._times.get(asked.value, []), asked.command
            most = len(command.ops) if isinstance(command, Transaction) else 1
            if len(times) > most:
                raise Wrong(f"twice: {asked} got no outcome, and is at {times}")
            if times and len(times) < most:
                raise Wrong(f"lost: {asked} got no outcome, and is at {times} in part")

    def _versions(self):
        """For each key the indexes at which it changed, and what it held from there on."""
        versions = {}
        for index in sorted(self.history):
            change = self.history[index].change
            held = None if change.kind in REMOVALS else change.value
            places, values = versions.setdefault(change.key, ([], []))
            places.append(index)
            values.append(held)
        return versions

    def _check_one(self, asked, outcome, versions):
        events = events_of(outcome)
        times = self._times.get(asked.value, [])
        expected = [event.change.index for event in events if event.change.value == asked.value]
        if isinstance(outcome, ApiError) and times:
            raise Wrong(f"refused and done: {asked} got {outcome!r}, and is at {times}")
        if len(times) > len(expected):
            raise Wrong(f"twice: {asked} got {expected}, and is at {times}")
        if times != expected:
            raise Wrong(f"lost: {asked} got {expected}, and is at {times}")
        for event in events:
            if self.history[event.change.index].change != event.change:
                raise Wrong(f"lost: {asked} got {event}")
            before = held_at(versions, event.change.key, event.change.index - 1)
            if (event.prev.value if event.prev else None) != before:
                raise Wrong(f"stale: {asked} got {event}, {before!r} was there")
        if isinstance(outcome, ApiError):
            held = held_at(versions, asked.command[0], outcome.index)
            if not is_right(asked.command, outcome, held):
                raise Wrong(f"stale: {asked} got {outcome!r}, {held!r} was there")


class _Observer:
    """Sees the batches of one replica: a `kvd.core.batch.flow.Observer`."""

    kept = (1,)

    def __init__(self, checker, first):
        self._checker = checker
        self._last = first

    def observe(self, events):
        for event, _ in events:
            if event.change.index != self._last + 1:
                raise Wrong(f"gap: {event} comes after index {self._last}")
            self._last += 1
            self._checker.applies(event)


def is_definite(outcome):
    if isinstance(outcome, RouteError):
        return outcome.status != 500
    return outcome.code != RAFT_INTERNAL


def events_of(outcome):
    if isinstance(outcome, Event):
        return [outcome]
    return outcome if isinstance(outcome, list) else []


def held_at(versions, key, index):
    """Return the value of a key at an index; None if it was not there."""
    places, values = versions.get(key, ((), ()))
    place = bisect.bisect_right(places, index)
    return values[place - 1] if place else None


def is_right(command, refusal, held):
    """Whether a command on one file is to be refused so where the file holds that."""
    match command:
        case Create():
            return refusal.code == 105 and held is not None
        case Delete() | Update() | Set():
            return refusal.code == 100 and held is None
        case CompareAndSwap():
            if held is None:
                return refusal.code == 100
            return refusal.code == 101 and held != command.prev_value
        case _:
            return True
