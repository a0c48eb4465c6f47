"""Items of a queue: how one is claimed, waited for, and removed.

The queue is a directory of in-order keys. A taker claims an item by the key `_claims/NAME` below
the queue: a lease (lease.py), so that the item of a dead taker is handed out again after its TTL.
A handled item is removed together with its claim; where the server has no transactions, before it.
The value of an item is `{"id": ID, "value": VALUE}`; any other text is a value without an id, whose
id is the name of its key.
"""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Container
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvd.client.errors import (
    ClusterChanged,
    CompareFailed,
    HistoryLost,
    KeyExists,
    KeyNotFound,
    KvdError,
    OutcomeUnknown,
    ServerRefused,
    TransportError,
    WatchTimeout,
)
from kvd.client.model import Compare, Node, Op
from kvd.client.operations import Given, Operations
from kvd.client.recipes.lease import AGAIN_S, Lease, LockLost, boot_s
from kvd.client.watches import Watching, require_seconds
from kvd.client.wire import Operation, Sleep

if TYPE_CHECKING:
    import asyncio
    import threading

E = TypeVar("E", "threading.Event", "asyncio.Event")
_PAGE = 100
"""Items that are looked at together, where the server has pages."""


class QueueEmpty(KvdError):
    """No item of the queue could be taken in time.

    Example:
        >>> from kvd.client import QueueEmpty
        >>> try:
        ...     with client.queue("/jobs/none").take(timeout=0) as item:
        ...         pass
        ... except QueueEmpty:
        ...     print("nothing to do")
        nothing to do
    """


def new_item(value: str, id: str | None) -> tuple[str, str]:  # noqa: A002 -- as `Queue.put`
    """Return an item's id and the text of its key."""
    item_id = uuid.uuid4().hex if id is None else id
    return item_id, json.dumps({"id": item_id, "value": value})


class Item(Generic[E]):
    """An item of a queue that was taken.

    Attributes:
        key: its key.
        id: as it was put; the same each time that the item is handed out.
        value: its text.
        lost: set once another taker may get it.

    Example:
        >>> queue = client.queue("/jobs/print")
        >>> item_id = queue.put("invoice", id="order-7")
        >>> with queue.take(timeout=10) as item:
        ...     item.check()
        ...     print(item.id, item.value)
        order-7 invoice
    """

    def __init__(self, node: Node, lease: Lease, lost: E) -> None:
        self.key = node.key
        self.id, self.value = _parts(node)
        self.lost: E = lost
        self._lease = lease

    def check(self) -> None:
        """Raise LockLost unless no other taker can get the item; call it before what is done once.

        Raises:
            LockLost: another taker may have it.
        """
        if self.lost.is_set() or self._lease.is_over():
            raise LockLost(f"{self.key} is no longer claimed")


def _parts(node: Node) -> tuple[str, str]:
    text = node.value or ""
    try:
        decoded: Any = json.loads(text)
    except ValueError:
        decoded = None
    if isinstance(decoded, dict) and decoded.keys() == {"id", "value"}:
        return str(decoded["id"]), str(decoded["value"])
    return posixpath.basename(node.key), text


class Taking:
    """One item, from its place in the queue to its end.

    Attributes:
        lease: the claim, once there is one.
        item: the key of the item, once it is claimed.
    """

    def __init__(self, ops: Operations, name: str, ttl: int) -> None:
        self.lease = Lease(ops, ttl)
        self._ops = ops
        self._directory = posixpath.normpath("/" + name.lstrip("/"))
        self._claims = posixpath.join(self._directory, "_claims")
        self.item = ""
        self._claim_key = ""

    def take(self, timeout: float | None) -> Operation[Node]:
        """Return the first item that no taker has claimed; wait for one, in so many seconds.

        If that is interrupted or cancelled, a claim that was made is removed again.

        Raises:
            QueueEmpty: there was none in time.
            TransportError, ApiError: the queue could not be read.
        """
        try:
            return (yield from self._next(timeout))
        except (KvdError, GeneratorExit):
            raise
        except BaseException:
            yield from self.give_back()
            raise

    def give_back(self) -> Operation[None]:
        """Remove the claim, if there is one, so that another taker gets the item at once.

        A claim that is there without a response to its request is removed as well: the server takes
        the removal after all that it has received before. One that could not be removed in the time
        between two refreshes ends with its TTL.
        """
        if self._claim_key:
            self.lease.key = self._claim_key
            yield from self.lease.leave(self.lease.patience_s)

    def _next(self, timeout: float | None) -> Operation[Node]:
        require_seconds(timeout)
        ends = None if timeout is None else monotonic() + timeout
        while True:
            claims = yield from self._claimed()
            node, index = yield from self._first(claims.keys())
            if node is not None:
                self.item = node.key
                return node
            # By then a claim has ended, or was refreshed.
            times = [monotonic() + max(ttl or 0, 1) for ttl in claims.values()]
            if ends is not None:
                times.append(ends)
            yield from self._wait(index, min(times, default=None))
            if ends is not None and monotonic() >= ends:
                raise QueueEmpty(f"{self._directory} had no item in {timeout:g} s")

    def _claimed(self) -> Operation[dict[str, int | None]]:
        """Return the names of the items that are claimed, and the TTL of each claim."""
        try:
            tree = yield from self._ops.ls(self._claims, recursive=False)
        except KeyNotFound:
            return {}
        return {posixpath.basename(node.key): node.ttl for node in tree}

    def _first(self, claimed: Container[str]) -> Operation[tuple[Node | None, int]]:
        """Claim an item; return it, or None and the index behind which another one may come."""
        after: str | None = None
        index: int | None = None
        while True:
            try:
                tree, after = yield from self._ops.page(self._directory, after, _PAGE)
            except KeyNotFound as error:
                return None, error.index if index is None else index
            index = tree.index if index is None else index
            for node in sorted(tree, key=lambda node: node.key):
                name = posixpath.basename(node.key)
                if not node.dir and name not in claimed and (yield from self._claim(node, name)):
                    return node, index
            if after is None:
                return None, index

    def _claim(self, node: Node, name: str) -> Operation[bool]:
        """Try to claim an item; return whether it is there and ours."""
        key = self._claim_key = posixpath.join(self._claims, name)
        form: Given = {"value": self.lease.value, "ttl": self.lease.ttl, "prevExist": False}
        began = boot_s()
        try:
            yield from self._ops.write("PUT", key, form)
        except KeyExists:
            return False
        except OutcomeUnknown:
            if not (yield from self._is(key, self.lease.value)):
                return False
        self.lease.take(key, began)
        # Another taker may have handled it since the listing.
        try:
            is_there = yield from self._is(node.key, node.value)
        except KvdError:
            yield from self.lease.leave()
            raise
        if not is_there:
            yield from self.lease.leave()
        return is_there

    def _is(self, key: str, value: str | None) -> Operation[bool]:
        """Return whether there is a key with a value."""
        try:
            return (yield from self._ops.get(key, quorum=True)).value == value
        except KeyNotFound:
            return False

    def _wait(self, index: int, ends: float | None) -> Operation[None]:
        """Wait until an item is put behind an index."""
        watching = Watching(self._ops, self._directory, index + 1, recursive=True)
        try:
            while True:
                left = None if ends is None else max(ends - monotonic(), 0)
                event = yield from watching.next(left)
                is_item = posixpath.dirname(event.node.key) == self._directory
                if is_item and event.node.value is not None:
                    return
        except (WatchTimeout, ClusterChanged, HistoryLost):
            return  # the next listing shows what there is
        finally:
            watching.let_go()

    def finish(self) -> Operation[None]:
        """Remove the item and its claim.

        Raises:
            LockLost: that could not be done: the item will be handed out again, or was.
        """
        while not self.lease.is_over():
            try:
                if (yield from self._is_removed()):
                    return
                break
            except (OutcomeUnknown, TransportError, ServerRefused):
                # It may be repeated: no other item gets this name, and no other claim this value.
                yield Sleep(AGAIN_S)
        raise LockLost(f"{self.item} could not be removed by its taker, and is handed out again")

    def _is_removed(self) -> Operation[bool]:
        """Remove the item; return whether it is gone, by this try, an earlier one or others."""
        try:
            yield from self._remove()
        except (KeyNotFound, CompareFailed):
            if (yield from self._ops.exists(self.item)):
                return False
            yield from self.lease.leave()
        return True

    def _remove(self) -> Operation[None]:
        if "txn" in (yield from self._ops.extras()):
            yield from self._ops.txn(
                [Op.delete(self.item), Op.delete(self.lease.key)],
                when=[Compare(self.lease.key, value=self.lease.value)],
            )
            return
        yield from self._ops.delete(
            self.item,
            recursive=False,
            dir=False,
            if_index=None,
            if_value=None,
            missing_ok=True,
        )
        yield from self.lease.leave()
