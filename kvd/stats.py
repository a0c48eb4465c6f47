"""The counters and the two other statistics that etcd shows; all start at zero with the process.

One operation is one count, by its kind and not by its method; what is refused while its parameters
are read is no operation. (etcd counts some refusals as successes, and its own look at the auth
tables as reads: not copied.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from kvd.commands import (
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
from kvd.response import go_duration, timestamp

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


class StoreStats:
    """What `/v2/stats/store` shows."""

    def __init__(self) -> None:
        # In etcd's order, each with its successes and failures.
        self._counts = {name: [0, 0] for name in dict.fromkeys(_NAMES.values())}
        self._by_type = {kind: self._counts[name] for kind, name in _NAMES.items()}
        self.gets = self._by_type[Get]
        """Successes and failures of reads, to be counted without a call."""
        self._expired = 0

    def count(self, command: Command | Get, *, succeeded: bool) -> None:
        """Count one finished operation."""
        self._by_type[type(command)][not succeeded] += 1

    def expired(self, count: int) -> None:
        """Count keys and directories that the server removed at the end of their time."""
        self._expired += count

    def body(self, watchers: int) -> bytes:
        """Return the JSON object, with the current number of watchers."""
        fields: dict[str, int] = {}
        for name, (successes, failures) in self._counts.items():
            fields[f"{name}Success"] = successes
            fields[f"{name}Fail"] = failures
        fields["expireCount"] = self._expired
        fields["watchers"] = watchers
        return _compact(fields)


class SelfStats:
    """What `/v2/stats/self` and `/v2/stats/leader` show: a leader without followers."""

    def __init__(self, *, name: str, member_id: int, started_ns: int) -> None:
        self._name = name
        self._id = f"{member_id:x}"
        self._started_ns = started_ns

    def self_body(self, now_ns: int) -> bytes:
        """Return the member's own statistics; times are in UTC."""
        started = timestamp(self._started_ns).decode()
        return _compact(
            {
                "name": self._name,
                "id": self._id,
                "state": "StateLeader",
                "startTime": started,
                "leaderInfo": {
                    "leader": self._id,
                    "uptime": go_duration(max(0, now_ns - self._started_ns)),
                    "startTime": started,
                },
                "recvAppendRequestCnt": 0,
                "sendAppendRequestCnt": 0,
            }
        )

    def leader_body(self) -> bytes:
        """Return the leader's statistics: there are no followers."""
        return _compact({"leader": self._id, "followers": {}})


def _compact(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
