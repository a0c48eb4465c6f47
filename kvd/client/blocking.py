"""`Client`: the client for programs without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self, TypeVar

from kvd.client.operations import Operations
from kvd.client.recipes.blocking import Barrier, Counter, Election, Lock
from kvd.client.recipes.blocking_queue import Queue
from kvd.client.sockets import Driver
from kvd.client.streams import Follow, Watch
from kvd.client.watches import Following, Watching
from kvd.client.wire import Operation

if TYPE_CHECKING:
    import ssl

    from kvd.client.model import Compare, Event, Node, Op, Tree

T = TypeVar("T")
PAGE = 1000
"""Children of a page of `iter_ls`."""


class Client:
    """A client of kvd, or of an etcd with the v2 API. Its methods may be called from all threads.

    Keys have one slash in front, which is added where it is missing. Values are text; what is none
    (see `get_bytes`) is shown with the character U+FFFD. Errors are those of `kvd.client.errors`:
    each operation may raise `TransportError` (nothing has happened), each that writes also
    `OutcomeUnknown` (it may have happened). A write that was sent is never sent again.

    Example:
        >>> from kvd import Client
        >>> with Client("http://127.0.0.1:2379") as client:  # doctest: +SKIP
        ...     client.set("/app/port", "8080").index
        ...     client.get("/app/port").value
    """

    def __init__(
        self,
        url: str | Sequence[str] = "http://127.0.0.1:2379",
        *,
        username: str | None = None,
        password: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 5.0,
        namespace: str = "",
        connections: int = 10,
    ) -> None:
        """Make a client; it connects when it is used.

        Args:
            url: `http://HOST:PORT`, `https://HOST:PORT`, `unix:///PATH`, `unixs:///PATH` (with TLS,
                for the name `localhost`), or several: the next is asked where one does not answer.
            username: of a user of the store.
            password: of that user.
            tls: how servers are checked; the system's authorities where it is not given.
            timeout: seconds that an operation takes at most; watches are not limited by it.
            namespace: a directory that stands before all keys and is not shown.
            connections: so many are kept open while nothing is asked.

        Raises:
            ValueError: a URL is none.
        """
        self._driver = Driver(tls)
        self._operations = Operations(
            url,
            username=username,
            password=password,
            timeout=timeout,
            namespace=namespace,
            connections=connections,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept; watches are closed on their own."""
        self._operations.exchanges.close()

    def _run(self, operation: Operation[T]) -> T:
        from time import sleep  # noqa: PLC0415 -- a test's clock may stand in its place

        return self._driver.run(operation, sleep)

    def get(self, key: str, *, quorum: bool = False) -> Node:
        """Return a key, file or directory.

        Args:
            key: its name.
            quorum: let a cluster agree on it; a single server's answer is the same.

        Raises:
            KeyNotFound: there is none.
        """
        return self._run(self._operations.get(key, quorum=quorum))

    def get_or(self, key: str, default: T) -> str | T:
        """Return the value of a key, or something else where there is no such file."""
        found: str | T = self._run(self._operations.get_or(key, default))
        return found

    def get_bytes(self, key: str) -> bytes:
        """Return the value of a key as it is (kvd only).

        Raises:
            KeyNotFound, NotAFile: there is no such file.
            NotSupported: the server is no kvd.
        """
        return self._run(self._operations.get_bytes(key))

    def exists(self, key: str) -> bool:
        """Return whether there is such a key."""
        return self._run(self._operations.exists(key))

    def ls(self, key: str = "/", *, recursive: bool = False) -> Tree:
        """Return the children of a directory, or all that is below it, at one index.

        Hidden keys (`_name`) are not shown.

        Raises:
            KeyNotFound, NotADirectory: there is no such directory.
        """
        return self._run(self._operations.ls(key, recursive=recursive))

    def iter_ls(self, key: str = "/", *, page: int = PAGE) -> Iterator[Node]:
        """Yield the children of a directory, read page by page, each page at an index of its own.

        From etcd, which has no pages, they come in one listing.

        Args:
            key: the directory.
            page: children of a page, 1 to 10,000.
        """
        after: str | None = None
        while True:
            tree, after = self._run(self._operations.page(key, after, page))
            yield from tree
            if after is None:
                return

    def set(
        self,
        key: str,
        value: str,
        *,
        ttl: int | None = None,
        if_index: int | None = None,
        if_value: str | None = None,
        if_exists: bool | None = None,
    ) -> Event:
        """Set a key, with the directories above it.

        Args:
            key: its name.
            value: its text.
            ttl: seconds after which it expires; None for never.
            if_index: only if it was changed at this index last.
            if_value: only if it has this value (not the empty one).
            if_exists: only if it is there, or is not.

        Raises:
            CompareFailed, KeyExists, KeyNotFound: the condition does not hold.
            NotAFile: it is a directory.
        """
        return self._run(
            self._operations.set(
                key, value, ttl=ttl, if_index=if_index, if_value=if_value, if_exists=if_exists
            )
        )

    def set_bytes(
        self,
        key: str,
        value: bytes,
        *,
        ttl: int | None = None,
        if_index: int | None = None,
        if_value: bytes | None = None,
        if_exists: bool | None = None,
    ) -> Event:
        """Set a key to bytes that need be no text (kvd only); the conditions are those of `set`.

        Raises:
            CompareFailed, KeyExists, KeyNotFound, NotAFile: as for `set`.
            NotSupported: the server is no kvd.
        """
        return self._run(
            self._operations.set_bytes(
                key, value, ttl=ttl, if_index=if_index, if_value=if_value, if_exists=if_exists
            )
        )

    def create(self, key: str, value: str, *, ttl: int | None = None) -> Event:
        """Set a key that is not there.

        Raises:
            KeyExists: it is.
        """
        form = {"value": value, "ttl": ttl, "prevExist": False}
        return self._run(self._operations.write("PUT", key, form))

    def append(self, key: str, value: str, *, ttl: int | None = None) -> Event:
        """Make a key below a directory, named so that it comes behind all made like this before."""
        return self._run(self._operations.write("POST", key, {"value": value, "ttl": ttl}))

    def mkdir(self, key: str, *, ttl: int | None = None, exist_ok: bool = False) -> Event | None:
        """Make a directory.

        Returns:
            The event; None where it was there, with `exist_ok`.

        Raises:
            KeyExists, NotAFile: there is such a key.
        """
        return self._run(self._operations.mkdir(key, ttl=ttl, exist_ok=exist_ok))

    def refresh(self, key: str, ttl: int, *, if_value: str | None = None) -> Event:
        """Let a key live for so many seconds from now; watchers are not told.

        Raises:
            KeyNotFound, CompareFailed: it is gone, or has another value.
        """
        form = {"ttl": ttl, "refresh": True, "prevExist": True, "prevValue": if_value}
        return self._run(self._operations.write("PUT", key, form))

    def delete(
        self,
        key: str,
        *,
        recursive: bool = False,
        dir: bool = False,  # noqa: A002 -- etcd's name
        if_index: int | None = None,
        if_value: str | None = None,
        missing_ok: bool = False,
    ) -> Event | None:
        """Remove a key.

        Args:
            key: its name.
            recursive: a directory too, with all below it.
            dir: an empty directory too.
            if_index: only if it was changed at this index last.
            if_value: only if it has this value.
            missing_ok: return None where it is not there.

        Raises:
            KeyNotFound, NotAFile, DirectoryNotEmpty, CompareFailed: it was not removed.
        """
        return self._run(
            self._operations.delete(
                key,
                recursive=recursive,
                dir=dir,
                if_index=if_index,
                if_value=if_value,
                missing_ok=missing_ok,
            )
        )

    def update(
        self, key: str, change: Callable[[str | None], str | None], *, tries: int = 50
    ) -> Event | None:
        """Change a value depending on what it is, also while other clients change it.

        Args:
            key: its name.
            change: gets the value, None where there is no such key; returns the new one, or None
                to leave all as it is. It may be called several times.
            tries: how often, before it is given up.

        Raises:
            CompareFailed, KeyExists, KeyNotFound: others were faster each time.
        """
        return self._run(self._operations.update(key, change, tries=tries))

    def watch(
        self,
        key: str,
        *,
        since: int | None = None,
        recursive: bool = True,
        timeout: float | None = None,
    ) -> Watch:
        """Return the events of a key, and of all below it.

        Each event with an index of at least `since` comes once, in order, over lost connections
        and restarts. Not shown are refreshes, hidden keys (`_name`) below a watched directory, and
        what happens above the key, but for the removal of a directory above it: that is the event
        of this directory, and `event.removes(key)` is true. Each open watch holds a connection.

        Args:
            key: its name; it need not be there.
            since: the first index; without it, the watch begins when the first event is requested.
            recursive: with all keys below it.
            timeout: seconds that each event is waited for; without it, as long as it takes.

        Raises, while it is iterated:
            WatchTimeout: no event came in time. Iterate again: none was lost.
            HistoryLost: the server no longer has all of these events.
            ClusterChanged: another store answers.
        """
        watching = Watching(self._operations, key, since, recursive=recursive)
        return Watch(self._driver, watching, timeout)

    def follow(self, key: str, *, timeout: float | None = None) -> Follow:
        """Return a snapshot of all below a key, then the events behind it.

        Where events are lost a new snapshot comes instead of an error: it never misses a state.

        Args:
            key: its name; it need not be there.
            timeout: seconds that each event is waited for; without it, as long as it takes.

        Raises, while it is iterated:
            WatchTimeout: nothing came in time. Iterate again: nothing was lost.
        """
        return Follow(self._driver, Following(self._operations, key), timeout)

    def txn(self, ops: Sequence[Op], *, when: Sequence[Compare] = ()) -> list[Event]:
        """Apply operations together if all conditions hold, or none of them (kvd only).

        Raises:
            ApiError: a condition does not hold, or an operation is refused.
            NotSupported: the server is no kvd.
        """
        return self._run(self._operations.txn(ops, when=when))

    def history(self, key: str, *, limit: int = 100, before: int | None = None) -> list[Event]:
        """Return the last events of a key, newest first (kvd only).

        Args:
            key: its name; it need not be there any more.
            limit: at most so many.
            before: only those with a lower index.

        Raises:
            NotSupported: the server is no kvd.
        """
        return self._run(self._operations.history(key, limit=limit, before=before))

    def lock(
        self, name: str, *, ttl: int = 10, on_lost: Callable[[], object] | None = None
    ) -> Lock:
        """Return a lock among programs; `with` waits for it and gives it up.

        Args:
            name: a directory; its in-order keys are the holder and the programs that wait.
            ttl: seconds after which the lock of a program that has died is free, 3 or more.
            on_lost: called, from another thread, if the lock is lost while it is held.
        """
        return Lock(self._driver, self._operations, name, ttl, on_lost)

    def election(
        self, name: str, *, ttl: int = 10, on_lost: Callable[[], object] | None = None
    ) -> Election:
        """Return a choice of one leader among programs.

        Args:
            name: a directory; its in-order keys are the leader and the other candidates.
            ttl: seconds after which a leader that has died is replaced, 3 or more.
            on_lost: called, from another thread, if this program leads and no longer may.
        """
        return Election(self._driver, self._operations, name, ttl, on_lost)

    def queue(self, name: str, *, ttl: int = 10) -> Queue:
        """Return a queue of texts among programs; each is handled at least once.

        Args:
            name: a directory; its in-order keys are the items.
            ttl: seconds after which the item of a taker that has died is handed out again, 3 or
                more.
        """
        return Queue(self._driver, self._operations, name, ttl)

    def counter(self, key: str) -> Counter:
        """Return a number in a key, that many programs add to."""
        return Counter(self._driver, self._operations, key)

    def barrier(self, key: str) -> Barrier:
        """Return a key that programs wait for to be gone."""
        return Barrier(self._driver, self._operations, key)
