"""`Watch`, `Follow` and `Observation`: the open streams of a `Client`, to iterate over."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from kvd.client.errors import TransportError
from kvd.client.recipes.leaders import Observing
from kvd.client.sockets import Driver
from kvd.client.watches import Following, Watching

if TYPE_CHECKING:
    from kvd.client.model import Event, Snapshot


class _Stream:
    """The base of all of them."""

    def __init__(
        self,
        driver: Driver,
        state: Watching | Following | Observing,
        timeout: float | None = None,
    ) -> None:
        self._driver = driver
        self._timeout = timeout
        self._closing = threading.Event()
        self._state = state

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and whatever waits for its next event; may be called from another thread."""
        self._state.is_closed = True
        self._closing.set()
        self._state.let_go()

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise TransportError("it is closed")

    def _next(self) -> Any:
        if self._closing.is_set():
            raise StopIteration
        try:
            return self._driver.run(self._state.next(self._timeout), self._pause)
        except (TransportError, OSError, ValueError):
            if self._closing.is_set():
                raise StopIteration from None
            raise


class Watch(_Stream):
    """The events of a key, one after the other; ends when it is closed.

    Example:
        >>> from kvd import Client
        >>> with Client("http://127.0.0.1:2379") as client:
        ...     since = client.set("/seen", "1").index
        ...     with client.watch("/seen", since=since) as watch:
        ...         for event in watch:
        ...             print(event.action, event.node.key)
        ...             break
        set /seen
    """

    _state: Watching

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event: Event = self._next()
        return event

    @property
    def index(self) -> int | None:
        """The last index that is complete: save it, and continue with `since=index + 1`."""
        return self._state.index


class Follow(_Stream):
    """A snapshot of a subtree and the events behind it; ends when it is closed.

    Example:
        >>> with client.follow("/services", timeout=10) as follow:
        ...     print(type(next(follow)).__name__)
        Snapshot
    """

    _state: Following

    def __iter__(self) -> Iterator[Snapshot | Event]:
        return self

    def __next__(self) -> Snapshot | Event:
        received: Snapshot | Event = self._next()
        return received


class Observation(_Stream):
    """The value of an election's leader, at first and at each change; ends when it is closed.

    Example:
        >>> with client.election("/leaders/none").observe() as leaders:
        ...     print(next(leaders))
        None
    """

    _state: Observing

    def __iter__(self) -> Iterator[str | None]:
        return self

    def __next__(self) -> str | None:
        leader: str | None = self._next()
        return leader
