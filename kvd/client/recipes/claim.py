"""An entry in the queue of a lock: how it is made, kept, and given up.

The lock is a directory of in-order keys; the holder is the lowest of them. Each entry has a value
of its own, so that it is changed and removed by its owner only, and a TTL, so that a dead owner's
entry goes away. The fence is the entry's createdIndex: it grows from holder to holder, and
refreshes do not change it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
import uuid
from typing import Generic, TypeVar

from kvd.client.errors import (
    CompareFailed,
    KeyNotFound,
    KvdError,
    OutcomeUnknown,
    ServerRefused,
    TransportError,
)
from kvd.client.model import Node
from kvd.client.operations import Given, Operations
from kvd.client.wire import Operation, Sleep

E = TypeVar("E", threading.Event, asyncio.Event)
TTL_MIN_S = 3
"""Below it, an entry could end between two refreshes: etcd's expiry is exact to half a second."""
# The pause after a refresh without an answer.
_AGAIN_S = 0.1


class LockLost(KvdError):
    """The lock is no longer held, or may not be: its entry is gone, or could not be refreshed."""


class LockTimeout(KvdError):
    """The lock was not free in time."""


def boot_s() -> float:
    """Return a clock that goes on while the machine is suspended, as the server's does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Claim:
    """One entry.

    Attributes:
        key: the entry's name; empty before it is made.
        fence: its createdIndex.
        deadline: until then the server keeps it, on the clock of `boot_s`.
    """

    def __init__(self, ops: Operations, name: str, ttl: int, value: str = "") -> None:
        if ttl < TTL_MIN_S:
            raise ValueError(f"a lock needs a TTL of {TTL_MIN_S} s or more, got {ttl}")
        self.key = ""
        self.fence = 0
        self.deadline = 0.0
        self._ops = ops
        self._name = name
        self._ttl = ttl
        owner = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid()}
        self._value = json.dumps(owner | ({"value": value} if value else {}))

    @property
    def refresh_s(self) -> float:
        """Seconds between refreshes."""
        return self._ttl / 3

    def enter(self, timeout: float | None = None) -> Operation[None]:
        """Make the entry, and no second one.

        Raises:
            LockTimeout: not in so many seconds. The entry may be made yet, and end with its TTL.
            TransportError, ApiError: it was not made.
        """
        limit = None if timeout is None else boot_s() + timeout
        while not self.key:
            began = boot_s()
            form: Given = {"value": self._value, "ttl": self._ttl}
            try:
                event = yield from self._ops.write(
                    "POST", self._name, form, timeout=self._left(limit)
                )
            except OutcomeUnknown:
                # It is there, will be there, or never: after its TTL it does not matter.
                while not (yield from self._find(began)) and boot_s() < began + self._ttl:
                    self._left(limit)
                    yield Sleep(_AGAIN_S)
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

    def _find(self, began: float) -> Operation[bool]:
        """Look for an entry that may have been made; return whether it was found."""
        try:
            tree = yield from self._ops.ls(self._name, recursive=False)
        except (KeyNotFound, TransportError, ServerRefused):
            return False
        for node in tree:
            if node.value == self._value:
                self._take(node, began)
                return True
        return False

    def _take(self, node: Node, began: float) -> None:
        self.key, self.fence = node.key, node.created_index
        self.deadline = began + self._ttl

    def before(self) -> Operation[tuple[str, int] | None]:
        """Return the entry just before this one and the index of the listing; None for the holder.

        Raises:
            LockLost: this one is gone, or may be.
        """
        while True:
            try:
                tree = yield from self._ops.ls(self._name, recursive=False)
            except (TransportError, ServerRefused):
                if self.is_over():
                    raise LockLost(f"{self.key} could not be refreshed") from None
                yield Sleep(_AGAIN_S)
                continue
            except KeyNotFound:
                raise LockLost(f"{self.key} is gone") from None
            entries = sorted(node.key for node in tree if not node.dir)
            if self.key not in entries:
                raise LockLost(f"{self.key} is gone")
            place = entries.index(self.key)
            return (entries[place - 1], tree.index) if place else None

    def refresh(self) -> Operation[float]:
        """Let the entry live on; return after how many seconds to do it again.

        Raises:
            LockLost: it is gone, or its time may be over.
        """
        began = boot_s()
        left = self.deadline - began
        if left <= 0:
            raise LockLost(f"{self.key} could not be refreshed for {self._ttl} s")
        form: Given = {
            "ttl": self._ttl,
            "refresh": True,
            "prevExist": True,
            "prevValue": self._value,
        }
        try:
            yield from self._ops.write("PUT", self.key, form, timeout=min(left, self.refresh_s))
        except (KeyNotFound, CompareFailed) as error:
            raise LockLost(f"{self.key} is gone: {error}") from error
        except KvdError:
            # No answer: as long as the deadline has not passed, the entry is there.
            return min(_AGAIN_S, max(self.deadline - boot_s(), 0))
        self.deadline = began + self._ttl
        return self.refresh_s

    def is_over(self) -> bool:
        """Return whether the server may have removed the entry by now."""
        return boot_s() >= self.deadline

    def leave(self) -> Operation[None]:
        """Remove the entry, if it is still there; else its TTL does."""
        try:
            yield from self._ops.delete(
                self.key,
                recursive=False,
                dir=False,
                if_index=None,
                if_value=self._value,
                missing_ok=True,
            )
        except KvdError:
            return


class Held(Generic[E]):
    """A lock that is held.

    Attributes:
        key: the entry in the lock's queue.
        fence: a number that grows from holder to holder. Give it to whatever the lock protects, so
            that a holder that was too slow is refused there.
        lost: set once the lock is no longer held, or may not be.
    """

    def __init__(self, claim: Claim, lost: E) -> None:
        self.key = claim.key
        self.fence = claim.fence
        self.lost: E = lost
        self._claim = claim

    def check(self) -> None:
        """Raise LockLost unless the lock is held; call it before what needs the lock."""
        if self.lost.is_set() or self._claim.is_over():
            raise LockLost(f"{self.key} is no longer held")
