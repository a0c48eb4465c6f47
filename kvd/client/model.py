"""Results of the client: nodes, events, trees, snapshots; and the parts of a transaction."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Action = Literal[
    "get", "set", "create", "update", "compareAndSwap", "delete", "compareAndDelete", "expire"
]


@dataclass(frozen=True, slots=True)
class Node:
    """A key as it was at an index.

    Attributes:
        key: its full name, without the client's namespace.
        value: its text; None for a directory, and where a value is gone.
        dir: whether it is a directory.
        created_index, modified_index: the indexes of the changes that made it and changed it last.
        ttl: the seconds that are left, rounded up; None where it does not expire.
        expiration: when it expires, in UTC.
        index: the index of the store when this was true.

    Example:
        >>> node = client.set("/nodes/one", "1", ttl=60).node
        >>> node.value, node.dir, node.ttl, node.created_index == node.modified_index
        ('1', False, 60, True)
    """

    key: str
    value: str | None
    dir: bool
    created_index: int
    modified_index: int
    ttl: int | None
    expiration: datetime | None
    index: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change.

    Attributes:
        action: what was done.
        node: the key after it; of a removal, without value.
        prev_node: the key before it, where there was one.
        index: the index of the change.

    Example:
        >>> event = client.set("/events/one", "1")
        >>> event.action, event.prev_node, event.index == event.node.modified_index
        ('set', None, True)
    """

    action: Action
    node: Node
    prev_node: Node | None
    index: int

    def removes(self, key: str) -> bool:
        """Return whether the change took a key away, itself or with a directory above it.

        Example:
            >>> event = client.set("/events/dir/key", "1")
            >>> gone = client.delete("/events/dir", recursive=True)
            >>> gone is not None and gone.removes("/events/dir/key")
            True
        """
        if self.action not in ("delete", "compareAndDelete", "expire"):
            return False
        key, gone = posixpath.normpath("/" + key.lstrip("/")), self.node.key.rstrip("/")
        return key == gone or key.startswith(gone + "/")


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory's children, or all that is below it: iterate, or look a key up.

    Attributes:
        key: the directory.
        index: the index at which all of it was read.
        nodes: by their keys, in the server's order.

    Example:
        >>> event = client.set("/tree/leaf", "green")
        >>> tree = client.ls("/tree")
        >>> len(tree), "/tree/leaf" in tree, tree["/tree/leaf"].value
        (1, True, 'green')
    """

    key: str
    index: int
    nodes: Mapping[str, Node]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, key: object) -> bool:
        return key in self.nodes

    def __getitem__(self, key: str) -> Node:
        return self.nodes[key]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that is below a key at an index: what `follow` begins with.

    Attributes:
        nodes: files and directories, by their keys.
        index: the index at which it was read; the events that follow begin behind it.
        after_gap: whether events may lie between what was yielded before and this.

    Example:
        >>> from kvd.client import Snapshot
        >>> with client.follow("/empty", timeout=10) as follow:
        ...     for news in follow:
        ...         if isinstance(news, Snapshot):
        ...             print(news.nodes, news.after_gap)
        ...             break
        {} False
    """

    nodes: Mapping[str, Node]
    index: int
    after_gap: bool


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction; made by `exists`, `missing` and `unchanged`, or field by field.

    Attributes:
        key: the key that it is about.
        is_there: whether there has to be such a key. The others need it to be there.
        value, modified_index, created_index: what it has to have; None for anything.

    Example:
        >>> from kvd.client import Compare, Op
        >>> event = client.set("/compared", "1")
        >>> events = client.txn([Op.set("/compared", "2")], when=[Compare("/compared", value="1")])
    """

    key: str
    is_there: bool = True
    value: str | None = None
    modified_index: int | None = None
    created_index: int | None = None

    def to_json(self, full_key: str) -> dict[str, object]:
        """Return it as `POST /v2/txn` takes it."""
        condition: dict[str, object] = {"key": full_key}
        for name, what in (
            ("value", self.value),
            ("modifiedIndex", self.modified_index),
            ("createdIndex", self.created_index),
        ):
            if what is not None:
                condition[name] = what
        if len(condition) == 1:
            condition["exists"] = self.is_there
        return condition


def exists(key: str) -> Compare:
    """Return the condition that there is such a key.

    Example:
        >>> from kvd.client import exists
        >>> exists("/a").is_there
        True
    """
    return Compare(key)


def missing(key: str) -> Compare:
    """Return the condition that there is no such key.

    Example:
        >>> from kvd.client import missing
        >>> missing("/a").is_there
        False
    """
    return Compare(key, is_there=False)


def unchanged(node: Node) -> Compare:
    """Return the condition that a key is as it was read.

    Example:
        >>> from kvd.client import Op, unchanged
        >>> node = client.set("/watched/by/txn", "1").node
        >>> events = client.txn([Op.set("/copy", "1")], when=[unchanged(node)])
    """
    return Compare(node.key, modified_index=node.modified_index)


@dataclass(frozen=True, slots=True)
class Op:
    """An operation of a transaction.

    Attributes:
        action: `set`, `create`, `createInOrder`, `update`, `compareAndSwap`, `delete`,
            `compareAndDelete`.
        key: the key that it changes.
        fields: further fields, named as `POST /v2/txn` names them.

    Example:
        >>> from kvd.client import Op
        >>> events = client.txn([Op.create("/ops/a", "1"), Op.append("/ops/list", "x")])
        >>> Op("compareAndSwap", "/ops/a", {"value": "2", "prevValue": "1"}).action
        'compareAndSwap'
    """

    action: str
    key: str
    fields: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def set(cls, key: str, value: str, *, ttl: int | None = None) -> Op:
        """Return what sets a key."""
        return cls("set", key, _given(value=value, ttl=ttl))

    @classmethod
    def create(cls, key: str, value: str, *, ttl: int | None = None) -> Op:
        """Return what makes a key that is not there."""
        return cls("create", key, _given(value=value, ttl=ttl))

    @classmethod
    def append(cls, key: str, value: str, *, ttl: int | None = None) -> Op:
        """Return what makes an in-order key below a directory."""
        return cls("createInOrder", key, _given(value=value, ttl=ttl))

    @classmethod
    def delete(cls, key: str, *, recursive: bool = False, dir: bool = False) -> Op:  # noqa: A002 -- etcd's name
        """Return what removes a key."""
        return cls("delete", key, _given(recursive=recursive or None, dir=dir or None))


def _given(**fields: object) -> dict[str, object]:
    return {name: what for name, what in fields.items() if what is not None}


def _number(number: object) -> int:
    if not isinstance(number, int):
        raise TypeError(f"expected a number, got {number!r}")
    return number


class Names:
    """The keys of a client, below its namespace; and what servers say of them.

    Attributes:
        namespace: what stands before each key, without a slash at its end.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = "/" + namespace.strip("/") if namespace.strip("/") else ""

    def full(self, key: str) -> str:
        """Return a key as the server knows it."""
        if not isinstance(key, str):
            raise TypeError(f"a key is a str, got {key!r}")
        # As the server does, which answers other forms with a redirect.
        key = posixpath.normpath("/" + key.lstrip("/"))
        return self.namespace + key if key != "/" else self.namespace or "/"

    def own(self, full_key: str) -> str:
        """Return a key of the server's as the program knows it."""
        if not self.namespace:
            return full_key or "/"
        if (full_key + "/").startswith(self.namespace + "/"):
            return full_key[len(self.namespace) :] or "/"
        # The removal of a directory above takes the whole namespace along.
        is_above = self.namespace.startswith(full_key.rstrip("/") + "/")
        return "/" if is_above else full_key

    def node(self, shown: Mapping[str, Any], index: int) -> Node:
        """Return a node of an answer."""
        value = shown.get("value")
        if value is not None and shown.get("encoding") == "base64":
            value = base64.b64decode(value).decode("utf-8", "surrogateescape")
        if value is not None and not isinstance(value, str):
            raise TypeError(f"expected a text, got {value!r}")
        expiration, ttl = shown.get("expiration"), shown.get("ttl")
        return Node(
            key=self.own(shown.get("key", "/")),
            value=value,
            dir=bool(shown.get("dir", False)),
            created_index=_number(shown.get("createdIndex", 0)),
            modified_index=_number(shown.get("modifiedIndex", 0)),
            ttl=None if ttl is None else _number(ttl),
            expiration=None if expiration is None else datetime.fromisoformat(expiration),
            index=index,
        )

    def event(self, shown: Mapping[str, Any]) -> Event:
        """Return an event of an answer, or of a watch."""
        index = shown["node"]["modifiedIndex"]
        prev = shown.get("prevNode")
        return Event(
            action=shown["action"],
            node=self.node(shown["node"], index),
            prev_node=None if prev is None else self.node(prev, index),
            index=index,
        )

    def below(self, shown: Mapping[str, Any], index: int) -> dict[str, Node]:
        """Return the nodes of a listing, without the directory itself, each before its children."""
        found: dict[str, Node] = {}
        waiting = list(reversed(shown.get("nodes") or ()))
        while waiting:
            child = waiting.pop()
            node = self.node(child, index)
            found[node.key] = node
            waiting += reversed(child.get("nodes") or ())
        return found
