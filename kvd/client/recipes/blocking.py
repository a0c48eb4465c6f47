"""`Lock`, `Counter` and `Barrier` of a `Client`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic, sleep
from typing import Self

from kvd.client.errors import ClusterChanged, HistoryLost, KeyNotFound, WatchTimeout
from kvd.client.operations import Operations
from kvd.client.recipes.claim import Claim, LockTimeout
from kvd.client.recipes.keeper import Keeper
from kvd.client.recipes.leaders import Observing
from kvd.client.recipes.lease import Held, LockLost, require_ttl
from kvd.client.sockets import Driver
from kvd.client.streams.blocking import Observation, Watch
from kvd.client.watches import Watching, require_seconds


class Lock:
    """A fair lock among programs: each gets it in the order in which they asked.

    Example:
        >>> from kvd import Client
        >>> with Client("http://127.0.0.1:2379") as client, client.lock("/locks/disk") as held:
        ...     held.check()
        ...     print(held.fence > 0)
        True
    """

    def __init__(
        self,
        driver: Driver,
        ops: Operations,
        name: str,
        ttl: int,
        on_lost: Callable[[], object] | None = None,
        *,
        shown: str | None = None,
    ) -> None:
        self._shown = shown
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl
        self._on_lost = on_lost
        self._keeper: Keeper | None = None
        self._new_claim()

    def _new_claim(self) -> None:
        self._claim = Claim(self._ops, self._name, self._ttl, self._shown)

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
        require_seconds(timeout)
        deadline = None if timeout is None else monotonic() + timeout
        self._new_claim()
        self._driver.run(self._claim.enter(timeout), sleep)
        try:
            keeper = self._keeper = Keeper(self._driver, self._claim.lease, self._on_lost)
        except BaseException:  # there are too many threads, or the program ends
            self._driver.run(self._claim.lease.leave(), sleep)
            raise
        try:
            while (before := keeper.run(self._claim.before())) is not None:
                self._wait_for(*before, keeper, deadline)
        except BaseException:
            self.release()
            raise
        keeper.is_held = True
        return Held(self._claim.lease, self._claim.fence, keeper.lost)

    def _wait_for(self, key: str, index: int, keeper: Keeper, deadline: float | None) -> None:
        """Wait until something happens to an entry, such as its end: the next listing shows it."""
        left = None if deadline is None else max(deadline - monotonic(), 0)
        watching = Watching(self._ops, key, index + 1, recursive=False)
        with Watch(self._driver, watching, left) as watch:
            try:
                keeper.interrupts(watch)
                for _ in watch:
                    return
            except (ClusterChanged, HistoryLost):
                return
            except WatchTimeout:
                raise LockTimeout(f"{self._name} was not free in time") from None
            finally:
                keeper.interrupts(None)
        raise LockLost(f"{self._claim.lease.key} was lost while waiting")

    def release(self) -> None:
        """Give the lock up; of one that was lost nothing is changed."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.stop()
            if not keeper.lost.is_set():
                self._driver.run(self._claim.lease.leave(), sleep)


class Election:
    """A choice of one leader among programs, with a value that all can see.

    Each candidate has an entry as that of a lock; the leader is the one that has waited longest.

    Example:
        >>> election = client.election("/leaders/db")
        >>> with election.campaign("10.0.0.5"), election.observe() as leaders:
        ...     print(next(leaders))
        10.0.0.5
    """

    def __init__(
        self,
        driver: Driver,
        ops: Operations,
        name: str,
        ttl: int,
        on_lost: Callable[[], object] | None = None,
    ) -> None:
        require_ttl(ttl)
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl
        self._on_lost = on_lost

    def campaign(self, value: str) -> Lock:
        """Return a lock: `with` waits until this program leads, and steps down at the end.

        Args:
            value: what `observe` yields meanwhile, such as an address.
        """
        return Lock(self._driver, self._ops, self._name, self._ttl, self._on_lost, shown=value)

    def observe(self, *, timeout: float | None = None) -> Observation:
        """Return the value of the leader, and that of the next one at each change.

        It is None while there is no leader. A leader that was too slow may not know yet that it is
        none any more: `fence` tells one from the other.

        Args:
            timeout: seconds that each change is waited for; without it, as long as it takes.

        Raises, while it is iterated:
            WatchTimeout: there was no change in time. Iterate again: none was lost.
        """
        return Observation(self._driver, Observing(self._ops, self._name), timeout)


class Counter:
    """A number in a key, that many programs add to.

    Example:
        >>> counter = client.counter("/hits")
        >>> counter.add(2), counter.add(), counter.value
        (2, 3, 3)
    """

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
    """A key that programs wait for to be gone.

    Example:
        >>> barrier = client.barrier("/upgrade")
        >>> with barrier:  # other programs wait
        ...     pass
        >>> barrier.wait()
    """

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
