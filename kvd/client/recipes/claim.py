"""An entry in the queue of a lock: how it is made, and what is before it.

The lock is a directory of in-order keys; the holder is the lowest of them. Each entry is a lease
(lease.py). The fence is the entry's createdIndex: it grows from holder to holder, and refreshes do
not change it.
"""

from __future__ import annotations

from contextlib import suppress

from kvd.client.errors import (
    KeyNotFound,
    KvdError,
    OutcomeUnknown,
    ServerRefused,
    TransportError,
)
from kvd.client.model import Node
from kvd.client.operations import Given, Operations
from kvd.client.recipes.lease import AGAIN_S, Lease, LockLost, boot_s
from kvd.client.wire import Operation, Sleep


class LockTimeout(KvdError):
    """The lock was not free in time.

    Example:
        >>> from kvd.client import LockTimeout
        >>> with client.lock("/locks/busy"):
        ...     try:
        ...         held = client.lock("/locks/busy").acquire(timeout=0.01)
        ...     except LockTimeout:
        ...         print("another program has it")
        another program has it
    """


class Claim:
    """One entry.

    Attributes:
        lease: its key, once it is made.
        fence: its createdIndex.
    """

    def __init__(self, ops: Operations, name: str, ttl: int, shown: str | None = None) -> None:
        self.lease = Lease(ops, ttl, shown=shown)
        self.fence = 0
        self._ops = ops
        self._name = name

    def enter(self, timeout: float | None = None) -> Operation[None]:
        """Make the entry, and no second one.

        If that is interrupted or cancelled, an entry that was made is removed again, in the time
        between two refreshes at most; one that could not be removed ends with its TTL.

        Raises:
            LockTimeout: not in so many seconds. The entry may be made yet, and end with its TTL.
            TransportError, ApiError: it was not made.
        """
        try:
            yield from self._make(timeout)
        except (KvdError, GeneratorExit):
            raise
        except BaseException:
            yield from self._withdraw()
            raise

    def _make(self, timeout: float | None) -> Operation[None]:
        limit = None if timeout is None else boot_s() + timeout
        while not self.lease.key:
            began = boot_s()
            form: Given = {"value": self.lease.value, "ttl": self.lease.ttl}
            try:
                event = yield from self._ops.write(
                    "POST", self._name, form, timeout=self._left(limit)
                )
            except OutcomeUnknown:
                # It is there, will be there, or never: after its TTL it does not matter.
                ends = began + self.lease.ttl
                while not (yield from self._find(began)) and boot_s() < ends:
                    self._left(limit)
                    yield Sleep(AGAIN_S)
                continue
            self._take(event.node, began)

    def _left(self, limit: float | None) -> float:
        """Return the timeout of the next request.

        Raises:
            LockTimeout: there is no time left.
        """
        if limit is None:
            return self._ops.exchanges.timeout
        left = limit - boot_s()
        if left <= 0:
            raise LockTimeout(f"{self._name} was not free in time")
        return min(left, self._ops.exchanges.timeout)

    def _withdraw(self) -> Operation[None]:
        """Remove the entry if it was made."""
        patience_s = self.lease.patience_s
        with suppress(KvdError):
            if self.lease.key or (yield from self._find(boot_s(), patience_s)):
                yield from self.lease.leave(patience_s)

    def _find(self, began: float, timeout: float | None = None) -> Operation[bool]:
        """Look for an entry that may have been made; return whether it was found."""
        try:
            # With quorum it is read after the writes that the server has received.
            tree = yield from self._ops.ls(
                self._name, recursive=False, quorum=True, timeout=timeout
            )
        except (KeyNotFound, TransportError, ServerRefused):
            return False
        for node in tree:
            if node.value == self.lease.value:
                self._take(node, began)
                return True
        return False

    def _take(self, node: Node, began: float) -> None:
        self.lease.take(node.key, began)
        self.fence = node.created_index

    def before(self) -> Operation[tuple[str, int] | None]:
        """Return the entry just before this one and the index of the listing; None for the holder.

        Raises:
            LockLost: this one is gone, or may be.
        """
        key = self.lease.key
        while True:
            try:
                tree = yield from self._ops.ls(self._name, recursive=False)
            except (TransportError, ServerRefused):
                if self.lease.is_over():
                    raise LockLost(f"{key} could not be refreshed") from None
                yield Sleep(AGAIN_S)
                continue
            except KeyNotFound:
                raise LockLost(f"{key} is gone") from None
            entries = sorted(node.key for node in tree if not node.dir)
            if key not in entries:
                raise LockLost(f"{key} is gone")
            place = entries.index(key)
            return (entries[place - 1], tree.index) if place else None
