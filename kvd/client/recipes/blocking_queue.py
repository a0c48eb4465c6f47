"""`Queue` of a `Client`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

from kvd.client.operations import Operations
from kvd.client.recipes.items import Item, Taking, new_item
from kvd.client.recipes.keeper import Keeper
from kvd.client.recipes.lease import LockLost, require_ttl
from kvd.client.sockets import Driver


class Queue:
    """A queue of texts among programs: in order, and each handled at least once.

    Example:
        >>> queue = client.queue("/jobs/resize", ttl=30)
        >>> item_id = queue.put("7.png")
        >>> with queue.take(timeout=10) as item:
        ...     print(item.value, item.id == item_id)
        7.png True
    """

    def __init__(self, driver: Driver, ops: Operations, name: str, ttl: int) -> None:
        require_ttl(ttl)
        self._driver = driver
        self._ops = ops
        self._name = name
        self._ttl = ttl

    def put(self, value: str, *, id: str | None = None) -> str:  # noqa: A002 -- what it is called
        """Put an item at the end; return its id.

        Args:
            value: its text.
            id: what its takers tell it by, if it may have been put, or handled, twice; a new one
                where none is given.

        Raises:
            OutcomeUnknown: it may have been put. Put again, with the same id, it may come twice.
        """
        item_id, text = new_item(value, id)
        form = {"value": text}
        self._driver.run(self._ops.write("POST", self._name, form), sleep)
        return item_id

    @contextmanager
    def take(self, timeout: float | None = None) -> Iterator[Item[threading.Event]]:
        """Wait for an item in a `with`, at whose end it is removed.

        If the body raises an error, or the program dies, the item is handed out again after its
        TTL; if it is interrupted (`KeyboardInterrupt`, `SystemExit`), at once. Handling must bear
        to be repeated. A thread refreshes the claim meanwhile.

        Args:
            timeout: seconds to wait at most; without it, as long as it takes.

        Raises:
            QueueEmpty: there was no item in time.
            LockLost: at the end, if another taker may have got the item as well.
        """
        taking = Taking(self._ops, self._name, self._ttl)
        node = self._driver.run(taking.take(timeout), sleep)
        try:
            keeper = Keeper(self._driver, taking.lease, None)
            try:
                yield Item(node, taking.lease, keeper.lost)
            finally:
                keeper.stop()
            self._finish(taking, keeper)
        except Exception:
            raise  # what fails with this item is not to fail again at once
        except BaseException:
            self._driver.run(taking.give_back(), sleep)
            raise

    def _finish(self, taking: Taking, keeper: Keeper) -> None:
        if keeper.lost.is_set():
            raise LockLost(f"{taking.item} was lost, and is handed out again")
        self._driver.run(taking.finish(), sleep)
