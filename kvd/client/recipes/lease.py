"""A key that its owner keeps: a value of its own, a TTL, and refreshes.

The key is changed and removed by its owner only, because each of these changes names the value; a
dead owner's key goes away with its TTL. What the owner knows of that is a deadline, counted from
before the request that the server has answered: the server keeps the key for longer, never shorter.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from kvd.client.errors import CompareFailed, KeyNotFound, KvdError

if TYPE_CHECKING:
    import asyncio
    import threading

    from kvd.client.operations import Given, Operations
    from kvd.client.wire import Operation

E = TypeVar("E", "threading.Event", "asyncio.Event")
TTL_MIN_S = 3
"""Below it, a key could end between two refreshes: etcd's expiry is exact to half a second."""
AGAIN_S = 0.1
"""The pause after a request without an answer."""


class LockLost(KvdError):
    """The lock is no longer held, or may not be: its entry is gone, or could not be refreshed.

    The claim on an item of a queue is lost likewise.

    Example:
        >>> from kvd.client import LockLost
        >>> with client.lock("/locks/report") as held:
        ...     try:
        ...         held.check()  # before each step that needs the lock
        ...     except LockLost:
        ...         print("another program may have it now")
    """


def boot_s() -> float:
    """Return a clock that goes on while the machine is suspended, as the server's does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def require_ttl(ttl: int) -> None:
    """Raise ValueError where a TTL is too short to be refreshed in time."""
    if ttl < TTL_MIN_S:
        raise ValueError(f"expected a TTL of {TTL_MIN_S} s or more, got {ttl}")


class Lease:
    """One key and its owner's knowledge of it.

    Attributes:
        key: its name; empty before it is made.
        ttl: its seconds.
        value: what tells it from the key of any other owner.
        deadline: until then the server keeps it, on the clock of `boot_s`.
    """

    def __init__(self, ops: Operations, ttl: int, *, shown: str | None = None) -> None:
        """Prepare a key, with a value that shows a text of the owner's.

        Raises:
            ValueError: the TTL is too short to be refreshed in time.
        """
        require_ttl(ttl)
        self.key = ""
        self.ttl = ttl
        self.deadline = 0.0
        self._ops = ops
        self._pid = os.getpid()
        owner = {"id": uuid.uuid4().hex, "host": socket.gethostname(), "pid": self._pid}
        self.value = json.dumps(owner if shown is None else owner | {"value": shown})

    @property
    def refresh_s(self) -> float:
        """Seconds between refreshes."""
        return self.ttl / 3

    @property
    def patience_s(self) -> float:
        """Seconds for the removal of the key by an owner that is interrupted."""
        return min(self.refresh_s, self._ops.exchanges.timeout)

    def take(self, key: str, began: float) -> None:
        """Note that the server has made the key, requested at a time of `boot_s`."""
        self.key = key
        self.deadline = began + self.ttl

    def refresh(self) -> Operation[float]:
        """Let the key live on; return after how many seconds to do it again.

        Raises:
            LockLost: it is gone, or its time may be over.
        """
        began = boot_s()
        left = self.deadline - began
        if left <= 0:
            raise LockLost(f"{self.key} could not be refreshed for {self.ttl} s")
        form: Given = {
            "ttl": self.ttl,
            "refresh": True,
            "prevExist": True,
            "prevValue": self.value,
        }
        try:
            yield from self._ops.write("PUT", self.key, form, timeout=min(left, self.refresh_s))
        except (KeyNotFound, CompareFailed) as error:
            raise LockLost(f"{self.key} is gone: {error}") from error
        except KvdError:
            # No answer: as long as the deadline has not passed, the key is there.
            return min(AGAIN_S, max(self.deadline - boot_s(), 0))
        self.deadline = began + self.ttl
        return self.refresh_s

    def is_over(self) -> bool:
        """Return whether the server may have removed the key by now, or it is another process's.

        What a fork has copied belongs to the parent: two processes do not hold one lock.
        """
        return boot_s() >= self.deadline or os.getpid() != self._pid

    def leave(self, timeout: float | None = None) -> Operation[None]:
        """Remove the key, if it is still there; otherwise its TTL does. A fork removes nothing."""
        if os.getpid() != self._pid:
            return
        path, query = self._ops.path(self.key), {"prevValue": self.value}
        with suppress(KvdError):
            yield from self._ops.call("DELETE", path, query=query, timeout=timeout)


class Held(Generic[E]):
    """A lock that is held.

    Attributes:
        key: the entry in the lock's queue.
        fence: a number that grows from holder to holder. Give it to whatever the lock protects, so
            that a holder that was too slow is refused there.
        lost: set once the lock is no longer held, or may not be.

    Example:
        >>> with client.lock("/locks/disk") as first:
        ...     pass
        >>> with client.lock("/locks/disk") as second:
        ...     print(first.fence < second.fence, second.lost.is_set())
        True False
    """

    def __init__(self, lease: Lease, fence: int, lost: E) -> None:
        self.key = lease.key
        self.fence = fence
        self.lost: E = lost
        self._lease = lease

    def check(self) -> None:
        """Raise LockLost unless the lock is held; call it before what needs the lock."""
        if self.lost.is_set() or self._lease.is_over():
            raise LockLost(f"{self.key} is no longer held")
