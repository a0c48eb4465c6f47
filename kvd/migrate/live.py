"""Reading a store from an endpoint of the v2 API: of etcd, or of kvd.

One recursive read is consistent at its index. Two things the API does not show: hidden keys, which
etcd never lists (they are named, or kvd lists them), and refreshes, of which no watch is notified.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

from kvd.client.errors import ApiError
from kvd.client.operations import Given, Operations
from kvd.client.sockets import Driver
from kvd.client.wire import Reply
from kvd.migrate import times
from kvd.migrate.content import Content
from kvd.migrate.errors import Refused
from kvd.migrate.etcd.nodes import node_of
from kvd.storage import disk
from kvd.storage.format.identity import NewIds
from kvd.storage.format.node import Node

_SKEW_NS_MAX = times.NS + times.NS // 2  # the header `Date` has whole seconds


class Caller:
    """A connection to a server: the client's operations, taken by a driver with sockets."""

    def __init__(self, operations: Operations, driver: Driver) -> None:
        self._operations = operations
        self._driver = driver

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Given | None = None,
        body: bytes = b"",
        content_type: str = "",
        timeout: float | None = None,
    ) -> Reply:
        """Return the answer to a request, in so many seconds.

        Raises:
            KvdError: it was refused, or no answer came.
        """
        operation = self._operations.call(
            method, path, query=query, body=body, content_type=content_type, timeout=timeout
        )
        return self._driver.run(operation, sleep)

    def path(self, key: str) -> str:
        """Return the path of a key."""
        return self._operations.path(key)


@dataclass
class Source:
    """A server that is read.

    Attributes:
        extras: Its extras; none of etcd.
        hidden: The hidden keys to be read, where it does not list them.
    """

    caller: Caller
    hidden: Sequence[str] = ()
    extras: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        self.extras = extras(self.caller)

    def read(self, key: str = "/") -> Content:
        """Return all that is below a key.

        Raises:
            KvdError: it cannot be read.
        """
        reply = self._get(key)
        found = Content(nodes={}, index=reply.index)
        _add(found.nodes, _top(reply))
        if "hidden" not in self.extras:
            for name in self.hidden:
                _add(found.nodes, _top(self._get(name)))
        found.nodes = dict(sorted(found.nodes.items()))
        return found

    def _get(self, key: str) -> Reply:
        query: dict[str, str | int | bool | None] = {"recursive": True, "quorum": True}
        if "hidden" in self.extras:
            query |= {"hidden": True, "base64": True}
        return self.caller.call("GET", self.caller.path(key), query=query)

    def ids(self) -> NewIds | None:
        """Return the ids of cluster and member, None if it does not say."""
        reply = self.caller.call("GET", "/v2/stats/self")
        try:
            cluster_id = int(reply.headers.get("x-etcd-cluster-id", ""), 16)
            member_id = int(_json(reply)["id"], 16)
        except (KeyError, ValueError):
            return None
        return NewIds(cluster_id, member_id) if cluster_id and member_id else None

    def version(self) -> str:
        """Return what the server says that it is."""
        if self.extras:
            return "kvd"
        told = _json(self.caller.call("GET", "/version"))
        return f"etcd {told.get('etcdserver', '')}".strip()

    def notes(self) -> list[str]:
        """Return what cannot be read, and what is wrong with the clocks."""
        found = []
        reply = self.caller.call("GET", "/version")
        skew_ns = _skew_ns(reply)
        if abs(skew_ns) > _SKEW_NS_MAX:
            found.append(
                f"the clock of the source differs by {skew_ns / times.NS:+.0f} s: expirations are "
                "kept as times, so keys live that much longer or shorter"
            )
        if "hidden" not in self.extras and not self.hidden:
            found.append("hidden keys are not listed by etcd: name them by --hidden /KEY")
        try:
            users = _json(self.caller.call("GET", "/v2/auth/users")).get("users") or []
        except ApiError:
            users = []
        if users:
            found.append(
                f"{len(users)} users are not imported: the API shows no passwords; "
                "an import from the data directory has them"
            )
        return found


def extras(caller: Caller) -> frozenset[str]:
    """Return the extras of a server; none of etcd."""
    try:
        told = _json(caller.call("GET", "/v2/extras"))
    except ApiError as error:
        if error.status != 404:
            raise
        return frozenset()
    return frozenset(told.get("extras", ()))


def _add(nodes: dict[bytes, Node], top: Mapping[str, Any]) -> None:
    waiting = [top]
    while waiting:
        told = waiting.pop()
        path = str(told.get("key", "/")).encode()
        if path != b"/":
            nodes[path] = node_of(told)
        waiting += told.get("nodes") or ()
    # What is above a key that was read alone is there, too.
    for path in list(nodes):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in nodes:
            node = nodes[path]
            nodes[parent] = Node(None, node.created_index, node.created_index, 0, 1)
            parent = parent.rpartition(b"/")[0]


def _json(reply: Reply) -> dict[str, Any]:
    try:
        told = json.loads(reply.body)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise Refused(f"the server answers no JSON: {reply.body[:80]!r}")
    return told


def _top(reply: Reply) -> Mapping[str, Any]:
    """Return the node that was read."""
    node = _json(reply).get("node")
    if not isinstance(node, dict):
        raise Refused(f"the server is no store of the v2 API: {reply.body[:80]!r}")
    return node


def _skew_ns(reply: Reply) -> int:
    try:
        date = parsedate_to_datetime(reply.headers.get("date", ""))
    except ValueError:
        return 0
    # Half a second: the header is rounded down.
    return int(date.timestamp()) * times.NS + times.NS // 2 - disk.wall_clock_ns()
