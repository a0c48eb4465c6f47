"""`Keys`: the operations of a `Client` on keys, each documented once for both clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from kvd.client.wire import Operation

if TYPE_CHECKING:
    from kvd.client.model import Event, Node, Tree
    from kvd.client.operations import Operations
    from kvd.client.sockets import Driver

T = TypeVar("T")
PAGE = 1000
"""Children of a page of `iter_ls`."""


class Keys:
    """The methods of `Client` for keys; they have a file of their own because of its length."""

    _driver: Driver
    _operations: Operations

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

        Example:
            >>> client.set("/app/port", "8080").node.key
            '/app/port'
            >>> client.get("/app/port").value
            '8080'
        """
        return self._run(self._operations.get(key, quorum=quorum))

    def get_or(self, key: str, default: T) -> str | T:
        """Return the value of a key, or something else where there is no such file.

        Example:
            >>> client.get_or("/app/colour", "blue")
            'blue'
        """
        found: str | T = self._run(self._operations.get_or(key, default))
        return found

    def get_bytes(self, key: str) -> bytes:
        r"""Return the value of a key as it is (kvd only).

        Raises:
            KeyNotFound, NotAFile: there is no such file.
            NotSupported: the server is no kvd.

        Example:
            >>> event = client.set_bytes("/app/logo", b"\x89PNG")
            >>> client.get_bytes("/app/logo")
            b'\x89PNG'
        """
        return self._run(self._operations.get_bytes(key))

    def exists(self, key: str) -> bool:
        """Return whether there is such a key.

        Example:
            >>> client.exists("/no/such/key")
            False
        """
        return self._run(self._operations.exists(key))

    def ls(self, key: str = "/", *, recursive: bool = False) -> Tree:
        """Return the children of a directory, or all that is below it, at one index.

        Hidden keys (`_name`) are not shown.

        Raises:
            KeyNotFound, NotADirectory: there is no such directory.

        Example:
            >>> for name in ("a", "b"):
            ...     event = client.set(f"/hosts/{name}", "up")
            >>> tree = client.ls("/hosts")
            >>> [node.key for node in tree], tree["/hosts/a"].value
            (['/hosts/a', '/hosts/b'], 'up')
        """
        return self._run(self._operations.ls(key, recursive=recursive))

    def iter_ls(self, key: str = "/", *, page: int = PAGE) -> Iterator[Node]:
        """Yield the children of a directory, read page by page, each page at an index of its own.

        From etcd, which has no pages, they come in one listing.

        Args:
            key: the directory.
            page: children of a page, 1 to 10,000.

        Example:
            >>> event = client.set("/many/1", "one")
            >>> [node.value for node in client.iter_ls("/many", page=100)]
            ['one']
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

        Example:
            >>> event = client.set("/lease", "me", ttl=60)
            >>> client.set("/lease", "you", ttl=60, if_value="me").action
            'compareAndSwap'
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
        r"""Set a key to bytes that need be no text (kvd only); the conditions are those of `set`.

        Raises:
            CompareFailed, KeyExists, KeyNotFound, NotAFile: as for `set`.
            NotSupported: the server is no kvd.

        Example:
            >>> client.set_bytes("/blob", b"\x00", if_exists=False).action
            'create'
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

        Example:
            >>> client.create("/only/once", "1").action
            'create'
        """
        form = {"value": value, "ttl": ttl, "prevExist": False}
        return self._run(self._operations.write("PUT", key, form))

    def append(self, key: str, value: str, *, ttl: int | None = None) -> Event:
        """Make a key below a directory, named so that it comes behind all made like this before.

        Example:
            >>> first, second = client.append("/log", "a"), client.append("/log", "b")
            >>> first.node.key < second.node.key
            True
        """
        return self._run(self._operations.write("POST", key, {"value": value, "ttl": ttl}))

    def mkdir(self, key: str, *, ttl: int | None = None, exist_ok: bool = False) -> Event | None:
        """Make a directory.

        Returns:
            The event; None where it was there, with `exist_ok`.

        Raises:
            KeyExists, NotAFile: there is such a key.

        Example:
            >>> event = client.mkdir("/folder")
            >>> client.mkdir("/folder", exist_ok=True) is None
            True
        """
        return self._run(self._operations.mkdir(key, ttl=ttl, exist_ok=exist_ok))

    def refresh(self, key: str, ttl: int, *, if_value: str | None = None) -> Event:
        """Let a key live for so many seconds from now; watchers are not told.

        Raises:
            KeyNotFound, CompareFailed: it is gone, or has another value.

        Example:
            >>> event = client.set("/alive", "me", ttl=5)
            >>> client.refresh("/alive", 60).node.ttl
            60
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

        Example:
            >>> event = client.set("/old/key", "1")
            >>> gone = client.delete("/old", recursive=True)
            >>> client.delete("/old", missing_ok=True) is None
            True
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

        Example:
            >>> event = client.update("/visits", lambda value: str(int(value or 0) + 1))
            >>> client.get("/visits").value
            '1'
        """
        return self._run(self._operations.update(key, change, tries=tries))
