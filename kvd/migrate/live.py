"""Reading a store from an endpoint of the v2 API: of etcd, or of kvd.

One recursive read is consistent at its index. Two things the API does not show: hidden keys, which
etcd never lists (they are named, or kvd lists them), and refreshes, of which no watch is notified.
Bytes that are no UTF-8 are U+FFFD in the JSON of etcd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from time import sleep
from typing import Any

from kvd.client.errors import ApiError, KeyNotFound
from kvd.client.operations import Given, Operations
from kvd.client.sockets import Driver
from kvd.client.wire import Reply
from kvd.migrate import times
from kvd.migrate.content import Content
from kvd.migrate.deep_json import loads as json_of
from kvd.migrate.errors import Refused
from kvd.migrate.etcd.nodes import node_of
from kvd.storage import disk
from kvd.storage.format.identity import NewIds
from kvd.storage.format.node import Node

_REPLACED = "\N{REPLACEMENT CHARACTER}".encode()
_SKEW_NS_MAX = times.NS + times.NS // 2  # the header `Date` has whole seconds


class Caller:
    """A connection to a server: the client's operations, taken by a driver with sockets.

    Attributes:
        user: The user's name and password; None for a guest.
    """

    def __init__(
        self, operations: Operations, driver: Driver, user: tuple[str, str] | None = None
    ) -> None:
        self.user = user
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

    def authorize(self, authorization: str) -> None:
        """Send another header `Authorization` from now on; none if it is empty."""
        self._operations.exchanges.authorization = authorization

    def path(self, key: str) -> str:
        """Return the path of a key."""
        return self._operations.path(key)


@dataclass
class Source:
    """A server that is read.

    Attributes:
        extras: Its extras; none of etcd.
        hidden: The hidden keys to be read, where it does not list them.
        skew_ns: How much its clock is ahead, if expirations are to be shown by this machine's.
    """

    caller: Caller
    hidden: Sequence[str] = ()
    extras: frozenset[str] = field(default_factory=frozenset)
    skew_ns: int = 0
    _seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.extras = extras(self.caller)

    def keep_time(self) -> None:
        """From now on show expirations by the clock of this machine, where that is another."""
        skew_ns = _skew_ns(self.caller.call("GET", "/version"))
        self.skew_ns = skew_ns if abs(skew_ns) > _SKEW_NS_MAX else 0

    def read(self, key: str = "/") -> Content:
        """Return all that is below a key.

        With hidden keys that were named the index is that of the last response: two reads are equal
        once nothing was changed meanwhile. One that is gone since an earlier read is missing.

        Raises:
            KvdError: it cannot be read.
            Refused: the response is not one of a store, or shows two keys as one.
        """
        reply = self._get(key)
        found = Content(nodes={}, index=reply.index)
        self._add(found.nodes, reply)
        if "hidden" not in self.extras:
            for name in self.hidden:
                try:
                    reply = self._get(name)
                except KeyNotFound:
                    if name not in self._seen:
                        raise
                    continue
                self._seen.add(name)
                self._add(found.nodes, reply)
                found.index = max(found.index, reply.index)
        found.nodes = dict(sorted(found.nodes.items()))
        return found

    def _add(self, nodes: dict[bytes, Node], reply: Reply) -> None:
        found: dict[bytes, Node] = {}
        try:
            _add(found, _top(reply))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Refused(f"the server shows a node in no known form: {error!r}") from None
        if self.skew_ns:
            found = {path: self.local(node) for path, node in found.items()}
        nodes.update(found)

    def local(self, node: Node) -> Node:
        """Return a node with its expiration by the clock of this machine."""
        if not node.expiration_ns:
            return node
        return node._replace(expiration_ns=max(node.expiration_ns - self.skew_ns, 1))

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
        version = _json(self.caller.call("GET", "/version"))
        return f"etcd {version.get('etcdserver', '')}".strip()

    def notes(self, content: Content) -> list[str]:
        """Return what cannot be read, or was read otherwise; and what is wrong with the clocks."""
        found = []
        reply = self.caller.call("GET", "/version")
        skew_ns = _skew_ns(reply)
        if abs(skew_ns) > _SKEW_NS_MAX:
            what = (
                "TTLs are corrected by it"
                if self.skew_ns
                else "expirations are kept as times, so keys live that much longer or shorter"
            )
            found.append(f"the clock of the source differs by {skew_ns / times.NS:+.0f} s: {what}")
        replaced = sum(
            _REPLACED in path + (node.value or b"") for path, node in content.nodes.items()
        )
        if replaced and "hidden" not in self.extras:
            found.append(
                f"{replaced} keys or values hold U+FFFD, which etcd shows for bytes that are no "
                "UTF-8; an import from the data directory has those"
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
        document = _json(caller.call("GET", "/v2/extras"))
    except ApiError as error:
        if error.status != 404:
            raise
        return frozenset()
    return frozenset(document.get("extras", ()))


def _add(nodes: dict[bytes, Node], top: Mapping[str, Any]) -> None:
    waiting = [top]
    seen: set[bytes] = set()
    while waiting:
        document = waiting.pop()
        path = str(document.get("key", "/")).encode()
        if path in seen:
            raise Refused(
                f"the server shows several keys as {path.decode()}: import from its data directory"
            )
        seen.add(path)
        if path != b"/":
            nodes[path] = node_of(document)
        waiting += document.get("nodes") or ()
    # What is above a key that was read alone is there, too.
    for path in list(nodes):
        parent = path.rpartition(b"/")[0]
        while parent and parent not in nodes:
            node = nodes[path]
            nodes[parent] = Node(None, node.created_index, node.created_index, 0, 1)
            parent = parent.rpartition(b"/")[0]


def _json(reply: Reply) -> dict[str, Any]:
    try:
        decoded = json_of(reply.body)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise Refused(f"the server answers no JSON: {reply.body[:80]!r}")
    return decoded


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
