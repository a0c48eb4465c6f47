"""Import into a new data directory, which appears whole and compared with its source, or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from kvd.migrate.content import Content, digest
from kvd.migrate.errors import Conflict, Damaged
from kvd.storage.directory.claim import is_stray
from kvd.storage.format.node import Node
from kvd.storage.tools.transplant import Past, each_node, stored, transplant

Item = tuple[bytes, Node]
Shown = Callable[[Iterable[Item], int], Iterable[Item]]
"""Passes items on, of so many, and shows how far that is."""


def write(
    content: Content,
    target: Path,
    shown: Shown = lambda items, _: items,
    check_source: Callable[[], None] = lambda: None,
) -> str:
    """Make a store of some content; durable, read back and equal on return.

    Args:
        content: all of it.
        target: the new data directory.
        shown: shows the progress.
        check_source: called before the store gets its name: it raises if the source has changed.

    Returns:
        The digest of the nodes on both sides; history and users are compared, too.

    Raises:
        DirectoryUnusable: the target is not empty.
        Damaged: what was stored is not what was read. There is no new store then.
        OSError: the disk failed or is full. There is no new store then.
    """
    expected = content.digest()

    def check(draft: Path) -> None:
        with stored(draft, draft / "scratch.tmp") as view:
            events = view.events(view.applied.oldest_event)
            found = digest(each_node(view), events, view.documents())
            reached = view.applied.index
        _remove(draft / "scratch.tmp")
        if (found, reached) != (expected, content.index):
            raise Damaged(
                f"{target}: was read back with index {reached} and digest {found}, expected "
                f"{content.index} and {expected}; nothing was kept"
            )
        check_source()

    past = Past(content.index, content.events, content.raft_index, content.term, content.ids)
    items = shown(content.nodes.items(), len(content.nodes))
    transplant(target, items, content.documents, past, check)
    return content.digest_of_nodes()


def require_empty(target: Path) -> None:
    """Check a new data directory before what may take long is read.

    Raises:
        Conflict: it is there and holds something.
    """
    if target.is_dir() and any(not is_stray(entry.name) for entry in target.iterdir()):
        raise Conflict(f"{target}: is not empty; name a directory that is new or empty")
    if target.exists() and not target.is_dir():
        raise Conflict(f"{target}: is no directory")


def _remove(scratch: Path) -> None:
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
