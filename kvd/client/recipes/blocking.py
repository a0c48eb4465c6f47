"""`Lock`, `Counter` and `Barrier` of a `Client`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import Self, TypeVar

from kvd.client.errors import ClusterChanged, HistoryLost, KeyNotFound, KvdError
from kvd.client.operations import Operations
from kvd.client.recipes.claim import Claim, Held, LockLost, LockTimeout
from kvd.client.sockets import Driver
from kvd.client.streams import Watch
from kvd.client.watches import Watching
from kvd.client.wire import Operation

T = TypeVar("T")


class Lock:
    """A fair lock among programs: each gets it in the order in which they asked.

    Example:
        >>> from kvd import Client
        >>> with Client() as client, client.lock("/locks/backup") as held:  # doctest: +SKIP
        ...     write_somewhere(fence=held.fence)
        ...     held.check()
    """

    def __init__(
        self,
        driver: Driver,
        ops: Operations,
        name: str,
        ttl: int,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl
        self._on_lost = on_lost
        self._keeper: _Keeper | None = None
        self._new_claim()

    def _new_claim(self) -> None:
        self._claim = Claim(self._ops, self._name, self._ttl)

    def __enter__(self) -> Held[threading.Event]:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def acquire(self, timeout: float | None = None) -> Held[threading.Event]:
        """Wait for the lock.

        Args:
            timeout: seconds to wait at most; without it, as long as it takes.

        Raises:
            LockTimeout: it was not free in time.
            LockLost: the entry was lost while it waited.
            TransportError, ApiError: the entry could not be made.
        """
        if self._keeper is not None:
            raise RuntimeError("this lock is held already; make another one for each holder")
        deadline = None if timeout is None else monotonic() + timeout
        self._new_claim()
        self._driver.run(self._claim.enter(timeout), sleep)
        keeper = self._keeper = _Keeper(self._driver, self._claim, self._on_lost)
        try:
            while (before := keeper.run(self._claim.before())) is not None:
                self._wait_for(*before, keeper, deadline)
        except BaseException:
            self.release()
            raise
        keeper.is_held = True
        return Held(self._claim, keeper.lost)

    def _wait_for(self, key: str, index: int, keeper: _Keeper, deadline: float | None) -> None:
        """Wait until an entry is gone."""
        watching = Watching(self._ops, key, index + 1, recursive=False)
        with Watch(self._driver, watching) as watch:
            timer = None
            if deadline is not None:
                timer = threading.Timer(max(deadline - monotonic(), 0), watch.close)
                timer.daemon = True
                timer.start()
            try:
                keeper.interrupts(watch)
                for event in watch:
                    if event.removes(key):
                        return
            except (ClusterChanged, HistoryLost):
                return  # the next listing tells
            finally:
                keeper.interrupts(None)
                if timer is not None:
                    timer.cancel()
        if keeper.lost.is_set():
            raise LockLost(f"{self._claim.key} was lost while waiting")
        raise LockTimeout(f"{self._name} was not free in time")

    def release(self) -> None:
        """Give the lock up; of one that was lost nothing is changed."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
            if not keeper.lost.is_set():
                self._driver.run(self._claim.leave(), sleep)


class _Keeper:
    """Refreshes an entry from a thread of its own, until it is lost or given up."""

    def __init__(self, driver: Driver, claim: Claim, on_lost: Callable[[], object] | None) -> None:
        self.lost = threading.Event()
        self.is_held = False
        self._driver = driver
        self._claim = claim
        self._on_lost = on_lost
        self._stopped = threading.Event()
        self._watch: Watch | None = None
        self._thread = threading.Thread(target=self._keep, name="kvd-lock", daemon=True)
        self._thread.start()

    def run(self, operation: Operation[T]) -> T:
        """Return the result of an operation that ends early once the lock is lost."""
        if self.lost.is_set():
            operation.close()
            raise LockLost(f"{self._claim.key} was lost while waiting")
        return self._driver.run(operation, sleep)

    def interrupts(self, watch: Watch | None) -> None:
        """Let a watch end when the lock is lost."""
        self._watch = watch
        if watch is not None and self.lost.is_set():
            watch.close()

    def _keep(self) -> None:
        wait_s = self._claim.refresh_s
        while not self._stopped.wait(wait_s):
            try:
                wait_s = self._driver.run(self._claim.refresh(), self._stopped.wait)
            except KvdError:
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
        self._stopped.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()


class Counter:
    """A number in a key, that many programs add to."""

    def __init__(self, driver: Driver, ops: Operations, key: str) -> None:
        self._driver = driver
        self._ops = ops
        self._key = key

    @property
    def value(self) -> int:
        """The number; 0 where there is no such key."""
        return int(self._driver.run(self._ops.get_or(self._key, "0"), sleep))

    def add(self, number: int = 1) -> int:
        """Add a number; return the sum.

        Raises:
            OutcomeUnknown: it may have been added: counting twice, or not at all, is your choice.
        """
        event = self._driver.run(self._ops.add(self._key, number), sleep)
        return int(event.node.value or 0)


class Barrier:
    """A key that programs wait for to be gone."""

    def __init__(self, driver: Driver, ops: Operations, key: str) -> None:
        self._driver = driver
        self._ops = ops
        self._key = key

    def close(self, *, ttl: int | None = None) -> None:
        """Let `wait` wait from now on; for so many seconds, or until `lift`."""
        form = {"value": "", "ttl": ttl}
        self._driver.run(self._ops.write("PUT", self._key, form), sleep)

    def lift(self) -> None:
        """Let all go on."""
        operation = self._ops.delete(
            self._key, recursive=False, dir=False, if_index=None, if_value=None, missing_ok=True
        )
        self._driver.run(operation, sleep)

    def wait(self) -> None:
        """Wait until the key is gone; return at once where it is not there."""
        while True:
            try:
                node = self._driver.run(self._ops.get(self._key, quorum=False), sleep)
            except KeyNotFound:
                return
            watching = Watching(self._ops, self._key, node.index + 1, recursive=False)
            with Watch(self._driver, watching) as watch:
                try:
                    for event in watch:
                        if event.removes(self._key):
                            return
                except (ClusterChanged, HistoryLost):
                    continue

    def __enter__(self) -> Self:
        self.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.lift()
