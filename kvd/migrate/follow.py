"""Following a source into a running server until its writers have stopped, and the cut-over.

Events alone are not enough for equality: of a refresh no watch is notified, and of hidden keys etcd
tells some events only. So the cut-over is a second full read: whatever differs is put right, then
compared again until two reads in a row are equal. Where events were lost, or one does not fit to
what the target has, both are read in between, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvd.client.errors import HistoryLost, KeyNotFound, NotADirectory, NotAFile
from kvd.migrate.errors import Conflict, Refused
from kvd.migrate.etcd.nodes import node_of
from kvd.migrate.live import Source
from kvd.migrate.server import Change, Nodes, Target, differences, require_equal
from kvd.migrate.tail import EventDocument, Tail

_ROUNDS_MAX = 20
_REMOVALS = ("delete", "compareAndDelete", "expire")


@dataclass(frozen=True)
class CutOver:
    """The end of following: the source's index, what was put right then, and the digest of both."""

    index: int
    refreshed: int
    other: int
    digest: str


class Follower:
    """Keeps a server as a source is."""

    def __init__(self, source: Source, target: Target, index: int, *, others: bool) -> None:
        """Begin behind the read at an index; `others` says that the target has keys of its own."""
        self._source = source
        self._target = target
        self._others = others
        self._tail = Tail(source, index)

    def follow(self, is_over: Callable[[], bool], report: Callable[[Tail], None]) -> None:
        """Apply events until `is_over`; `report` is called after each, and once a second.

        Raises:
            KvdError: source or target has refused something.
        """
        while not is_over():
            try:
                document = self._tail.next()
            except HistoryLost:
                self._put_right()
            else:
                if document is not None:
                    self._apply(document)
            report(self._tail)

    def _apply(self, document: EventDocument) -> None:
        change = self._change(document)
        if _is_hidden(change.path) and "hidden" not in self._source.extras:
            return  # not all of its events are told: it is read at the end, if it was named
        try:
            self._target.write([change], overwrite=True, done=_nothing)
        except (Conflict, NotADirectory, NotAFile, KeyNotFound):
            self._put_right()

    def _change(self, document: EventDocument) -> Change:
        try:
            node = document["node"]
            path = str(node["key"]).encode()
            removes = document["action"] in _REMOVALS
            return Change(path, None if removes else self._source.local(node_of(node)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Refused(f"the server shows an event in no known form: {error!r}") from None

    def _put_right(self) -> tuple[Nodes, list[tuple[Change, bool]]]:
        """Read the source again and make the target equal.

        Returns:
            What the source has, and what differed; with each whether that was the TTL alone.
        """
        content = self._source.read()
        there = self._target.read()
        kept = {
            path: node for path, node in there.items() if path in content.nodes or not self._others
        }
        changes = differences(content.nodes, kept, self._target.slowest_ns)
        self._target.write(changes, overwrite=True, done=_nothing)
        self._tail.index = content.index
        values = {path: node.value for path, node in kept.items()}
        return content.nodes, [
            (change, change.node is not None and values.get(change.path) == change.node.value)
            for change in changes
        ]

    def cut_over(self) -> CutOver:
        """Make the target equal, until two reads of the source in a row find it so.

        Raises:
            Refused: the writers have not stopped.
        """
        refreshed = other = 0
        before: Nodes | None = None
        for _ in range(_ROUNDS_MAX):
            nodes, changes = self._put_right()
            count = sum(is_refresh for _, is_refresh in changes)
            refreshed += count
            other += len(changes) - count
            if not changes and nodes == before:
                held = require_equal(
                    nodes, self._target.read(), self._target.slowest_ns, others=self._others
                )
                return CutOver(self._tail.index, refreshed, other, held)
            before = nodes
        raise Refused(
            f"the source was changed between each two of {_ROUNDS_MAX} reads: stop its writers"
        )


def _is_hidden(path: bytes) -> bool:
    return b"/_" in path


def _nothing(_: int) -> None:
    pass
