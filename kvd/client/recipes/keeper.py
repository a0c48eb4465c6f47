"""The refreshes of a lease while a program holds it, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import sleep
from typing import TypeVar

from kvd.client.recipes.lease import Lease, LockLost
from kvd.client.sockets import Driver
from kvd.client.streams.blocking import Watch
from kvd.client.wire import Operation

T = TypeVar("T")


class Keeper:
    """Refreshes a lease from a thread of its own, until it is lost or given up.

    Attributes:
        lost: set once it is lost.
        is_held: whether `on_lost` is to be called then.
    """

    def __init__(self, driver: Driver, lease: Lease, on_lost: Callable[[], object] | None) -> None:
        self.lost = threading.Event()
        self.is_held = False
        self._driver = driver
        self._lease = lease
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._keep, name="kvd-lock", daemon=True)
        self._thread.start()

    def run(self, operation: Operation[T]) -> T:
        """Return the result of an operation that ends early once the lock is lost."""
        if self.lost.is_set():
            operation.close()
            raise LockLost(f"{self._lease.key} was lost while waiting")
        return self._driver.run(operation, sleep)

    def interrupts(self, watch: Watch | None) -> None:
        """Let a watch end when the lock is lost."""
        self._watch = watch
        if watch is not None and self.lost.is_set():
            watch.close()

    def _keep(self) -> None:
        wait_s = self._lease.refresh_s
        while not self._stopped.wait(wait_s):
            try:
                wait_s = self._driver.run(self._lease.refresh(), self._stopped.wait)
            except Exception:  # noqa: BLE001 -- whatever it was, nothing refreshes the key now
                self._lose()
                return

    def _lose(self) -> None:
        if self._stopped.is_set():
            return
        self.lost.set()
        watch = self._watch
        if watch is not None:
            watch.close()
        if self.is_held and self._on_lost is not None:
            self._on_lost()

    def stop(self) -> None:
        """Refresh it no more; returns once the thread has ended."""
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()
