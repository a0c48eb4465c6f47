"""The counters and the two other statistics that etcd shows; all start at zero with the process.

One operation is one count, by its kind and not by its method; what is refused while its parameters
are read is no operation. (etcd counts some refusals as successes, and its own look at the auth
tables as reads: not copied.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from kvd.core.histogram import Histogram
from kvd.core.standing import Follower, Latency, Leader, Role, Standing, Traffic
from kvd.v2.commands import (
    Command,
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Get,
    Set,
    Update,
)
from kvd.v2.errors import TABLE, ApiError
from kvd.v2.go_text import go_duration
from kvd.v2.response import timestamp

_NAMES: dict[type, str] = {
    Get: "gets",
    Set: "sets",
    Delete: "delete",
    Update: "update",
    Create: "create",
    CreateInOrder: "create",
    CompareAndSwap: "compareAndSwap",
    CompareAndDelete: "compareAndDelete",
}
_METHODS: dict[type, str] = {
    Get: "GET",
    **dict.fromkeys((Set, Create, Update, CompareAndSwap), "PUT"),
    CreateInOrder: "POST",
    Delete: "DELETE",
    CompareAndDelete: "DELETE",
}
_WRITING = ("PUT", "POST", "DELETE")
_TYPES = {
    method: [kind for kind, by in _METHODS.items() if by == method] for method in ("GET", *_WRITING)
}

_NEVER = "0001-01-01T00:00:00Z"
"""Go's zero time, for a leader that there is not."""
_NO_MINIMUM_S = 2.0**63 / 1e3
"""Etcd shows 2^63 ms before the first response of a follower."""


class StoreStats:
    """Counts of operations: `/v2/stats/store`, and the same in `/metrics`.

    Attributes:
        expirations: Keys and directories that the server removed at the end of their time.
        recursive_reads: Reads of whole subtrees, among all reads.
        heads: Reads by HEAD, among all reads.
        failed: How many operations failed, by method and HTTP status.
        listings_s: How long reads of directories took that had to be rendered; other reads are not
            timed.
    """

    def __init__(self) -> None:
        self._counts: dict[type, list[int]] = {kind: [0, 0] for kind in _NAMES}
        self.gets = self._counts[Get]
        """Those of reads."""
        self.durations: dict[type, list[float]] = {kind: [] for kind in _NAMES if kind is not Get}
        """How long successful writes took that are not counted yet, by the type of the command."""
        self.expirations = 0
        self.recursive_reads = 0
        self.heads = 0
        self.failed: Counter[tuple[str, int]] = Counter()
        self.listings_s = Histogram()
        self._writes_s = {method: Histogram() for method in _WRITING}

    def fold(self) -> None:
        """Count the writes that were noted; now and then, so that the lists stay short."""
        for kind, durations in self.durations.items():
            if durations:
                self._counts[kind][0] += len(durations)
                self._writes_s[_METHODS[kind]].take(durations)

    @property
    def counts(self) -> dict[type, list[int]]:
        """Successes and failures, by the type of what was asked."""
        self.fold()
        return self._counts

    @property
    def writes_s(self) -> dict[str, Histogram]:
        """Durations of successful writes by method: those of their batches, an upper bound."""
        self.fold()
        return self._writes_s

    def count(self, command: Command | Get, *, succeeded: bool) -> None:
        """Count one finished operation."""
        self._counts[type(command)][not succeeded] += 1

    def refused(self, command: Command | Get, refusal: ApiError, *, method: str = "") -> None:
        """Count one failure under its status, whether it is one of the store's or not."""
        status = TABLE[refusal.code].status
        self.failed[method or _METHODS[type(command)], status] += 1

    def successes(self, method: str) -> int:
        """Return how many operations by a method succeeded; HEAD is among GET."""
        return sum(self.counts[kind][0] for kind in _TYPES[method])

    def received(self) -> dict[str, int]:
        """Return how many operations each method asked for, successful or not."""
        counts = dict.fromkeys(("GET", *_WRITING), 0)
        for kind, both in self.counts.items():
            counts[_METHODS[kind]] += sum(both)
        counts["GET"] -= self.heads
        return counts | {"HEAD": self.heads}

    def operations(self) -> dict[str, tuple[int, int]]:
        """Return successes and failures by kind of operation, in etcd's order and words."""
        counts = dict.fromkeys(_NAMES.values(), (0, 0))
        for kind, (successes, failures) in self.counts.items():
            before = counts[_NAMES[kind]]
            counts[_NAMES[kind]] = (before[0] + successes, before[1] + failures)
        return counts

    def body(self, watchers: int) -> bytes:
        """Return the JSON object, with the current number of watchers."""
        fields: dict[str, int] = {}
        for name, (successes, failures) in self.operations().items():
            fields[f"{name}Success"] = successes
            fields[f"{name}Fail"] = failures
        fields["expireCount"] = self.expirations
        fields["watchers"] = watchers
        return _compact(fields)


class SelfStats:
    """`/v2/stats/self` and `/v2/stats/leader`."""

    def __init__(self, *, name: str, member_id: int, standing: Standing) -> None:
        self._name = name
        self._id = f"{member_id:x}"
        self._standing = standing

    def self_body(self, now_ns: int) -> bytes:
        """Return the member's own statistics; times are in UTC."""
        standing = self._standing
        return _compact(
            {
                "name": self._name,
                "id": self._id,
                "state": standing.role.raft_state,
                "startTime": timestamp(standing.started_ns).decode(),
                "leaderInfo": _leader_info(standing.leader, now_ns),
                **_traffic("recv", standing.received),
                **_traffic("send", standing.sent),
            }
        )

    def leader_body(self) -> bytes | None:
        """Return the leader's statistics; None, this member does not lead."""
        standing = self._standing
        if standing.role is not Role.LEADING:
            return None
        followers = {f"{each.member_id:x}": _follower(each) for each in standing.followers()}
        return _compact({"leader": self._id, "followers": followers})


def _leader_info(leader: Leader | None, now_ns: int) -> dict[str, object]:
    if leader is None:
        return {"leader": "", "uptime": "0s", "startTime": _NEVER}
    return {
        "leader": f"{leader.member_id:x}",
        "uptime": go_duration(max(0, now_ns - leader.since_ns)),
        "startTime": timestamp(leader.since_ns).decode(),
    }


def _traffic(way: str, traffic: Traffic) -> dict[str, object]:
    rates = {"PkgRate": traffic.frames_per_s, "BandwidthRate": traffic.bytes_per_s}
    return {f"{way}AppendRequestCnt": traffic.frames} | {
        f"{way}{name}": rate for name, rate in rates.items() if rate
    }


def _follower(follower: Follower) -> dict[str, object]:
    latency = follower.latency or Latency(0.0, 0.0, 0.0, _NO_MINIMUM_S, 0.0)
    names = ("current", "average", "standardDeviation", "minimum", "maximum")
    return {
        "latency": {
            name: round(value_s * 1e3, 6) for name, value_s in zip(names, latency, strict=True)
        },
        "counts": {"fail": follower.failures, "success": follower.successes},
    }


def _compact(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
