"""`Client`: the client for programs without an event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from kvd.client.keys import Keys
from kvd.client.operations import Operations
from kvd.client.recipes.blocking import Barrier, Counter, Election, Lock
from kvd.client.recipes.blocking_queue import Queue
from kvd.client.sockets import Driver
from kvd.client.streams.blocking import Follow, Watch
from kvd.client.watches import Following, Watching

if TYPE_CHECKING:
    import ssl

    from kvd.client.model import Compare, Event, Op


class Client(Keys):
    """A client of kvd, or of an etcd with the v2 API. Its methods may be called from all threads.

    Keys have one slash in front, which is added where it is missing. Values are text; what is none
    (see `get_bytes`) is shown with the character U+FFFD. Errors are those of `kvd.client.errors`:
    each operation may raise `TransportError` (nothing has happened), each that writes also
    `OutcomeUnknown` (it may have happened). A write that was sent is never sent again.

    Example:
        >>> from kvd import Client
        >>> with Client("http://127.0.0.1:2379") as client:
        ...     index = client.set("/app/name", "web").index
        ...     print(client.get("/app/name").value)
        web
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
            ValueError: a URL is none, the timeout not above 0, or a user's name has a colon.
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
        """Close the connections that are kept; watches are closed on their own.

        What is requested afterwards, or under way in another thread, has its connection closed.

        Example:
            >>> other = Client("http://127.0.0.1:2379")
            >>> other.close()
        """
        self._operations.exchanges.close()

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

        Example:
            >>> index = client.set("/watched/key", "1").index
            >>> with client.watch("/watched", since=index, timeout=10) as watch:
            ...     event = next(watch)
            >>> event.node.value, watch.index == index
            ('1', True)
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

        Example:
            >>> from kvd.client import Snapshot
            >>> event = client.set("/mirrored/key", "1")
            >>> with client.follow("/mirrored", timeout=10) as follow:
            ...     for news in follow:
            ...         if isinstance(news, Snapshot):
            ...             print(list(news.nodes))
            ...             break
            ['/mirrored/key']
        """
        return Follow(self._driver, Following(self._operations, key), timeout)

    def txn(self, ops: Sequence[Op], *, when: Sequence[Compare] = ()) -> list[Event]:
        """Apply operations together if all conditions hold, or none of them (kvd only).

        Raises:
            ApiError: a condition does not hold, or an operation is refused.
            NotSupported: the server is no kvd.

        Example:
            >>> from kvd.client import Op, missing
            >>> ops = [Op.set("/app/leader", "me"), Op.set("/app/since", "today")]
            >>> [event.action for event in client.txn(ops, when=[missing("/app/leader")])]
            ['set', 'set']
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

        Example:
            >>> for value in ("1", "2"):
            ...     event = client.set("/changing", value)
            >>> [event.node.value for event in client.history("/changing")]
            ['2', '1']
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

        Raises:
            ValueError: the TTL is too short.

        Example:
            >>> with client.lock("/locks/backup", ttl=10) as held:
            ...     held.check()
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

        Raises:
            ValueError: the TTL is too short.

        Example:
            >>> with client.election("/leaders/api").campaign("http://10.0.0.5:8080") as held:
            ...     held.check()
        """
        return Election(self._driver, self._operations, name, ttl, on_lost)

    def queue(self, name: str, *, ttl: int = 10) -> Queue:
        """Return a queue of texts among programs; each is handled at least once.

        Args:
            name: a directory; its in-order keys are the items.
            ttl: seconds after which the item of a taker that has died is handed out again, 3 or
                more.

        Raises:
            ValueError: the TTL is too short.

        Example:
            >>> item_id = client.queue("/jobs/mail").put("to: me")
        """
        return Queue(self._driver, self._operations, name, ttl)

    def counter(self, key: str) -> Counter:
        """Return a number in a key, that many programs add to.

        Example:
            >>> client.counter("/tickets").add()
            1
        """
        return Counter(self._driver, self._operations, key)

    def barrier(self, key: str) -> Barrier:
        """Return a key that programs wait for to be gone.

        Example:
            >>> client.barrier("/maintenance").wait()
        """
        return Barrier(self._driver, self._operations, key)
