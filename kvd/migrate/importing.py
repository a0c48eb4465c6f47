"""`kvdctl import`, from any source to any target.

Sources are a data directory of etcd, an endpoint and a document; targets a new data directory and a
running server. How each is read and written is in modules of its own; here are order and words.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from kvd.client.errors import HistoryLost
from kvd.migrate.content import Content
from kvd.migrate.documents import document
from kvd.migrate.documents.store import content_of
from kvd.migrate.errors import Refused
from kvd.migrate.etcd import directory
from kvd.migrate.follow import Follower
from kvd.migrate.live import Caller, Source
from kvd.migrate.new_store import Shown, require_empty, write
from kvd.migrate.server import Target, differences, require_equal
from kvd.migrate.tail import Tail, history
from kvd.storage.errors import EX_USAGE
from kvd.storage.format.event import Event
from kvd.storage.format.node import Node
from kvd.storage.format.records import Kind
from kvd.v2.documents import auth

_ATTEMPTS = 5


@dataclass(frozen=True)
class Options:
    """Flags of the verb, by their names.

    Attributes:
        is_over: When following is to end.
    """

    wal_dir: Path | None = None
    force: bool = False
    drop_tail: bool = False
    drop_uncommitted: bool = False
    new_ids: bool = False
    hidden: tuple[str, ...] = ()
    follow: bool = False
    overwrite: bool = False
    dry_run: bool = False
    form: str | None = None
    is_over: Callable[[], bool] = lambda: True


class Import:
    """One import.

    Args:
        connect: returns a connection to a URL.
        say: prints a line.
        shown: shows the progress of some items.
        state: shows a line that replaces the one before, on a terminal.
    """

    def __init__(
        self,
        options: Options,
        connect: Callable[[str], Caller],
        say: Callable[[str], None],
        shown: Shown,
        state: Callable[[str], None],
    ) -> None:
        self._options = options
        self._connect = connect
        self._say = say
        self._shown = shown
        self._state = state
        self._begun = monotonic()

    def run(self, source: str, target: str) -> None:
        """Import all of the source.

        Raises:
            StorageError: source or target cannot be used, or are not equal at the end.
            KvdError: a server has refused something, or does not answer.
        """
        if not is_url(target):
            require_empty(Path(target))
        if is_url(source):
            self._from_server(source, target)
            return
        if self._options.follow:
            raise Refused(f"--follow: {source} is no URL", exit_status=EX_USAGE)
        path = Path(source)
        if source != "-" and path.is_dir():
            content = self._from_directory(path, target)
        else:
            content = self._from_document(source, target)
        if not self._options.dry_run:
            self._write(content, target)

    # Sources.

    def _from_directory(self, path: Path, target: str) -> Content:
        options = self._options
        if (path / "FORMAT").exists():
            raise Refused(
                f"{path}: is a data directory of kvd; `kvdctl backup` and `kvdctl restore` copy it",
                exit_status=EX_USAGE,
            )
        if not directory.is_etcd(path):
            raise Refused(f"{path}: is no data directory of etcd", exit_status=EX_USAGE)
        found = directory.read(
            path,
            wal_dir=options.wal_dir,
            force=options.force,
            drop_tail=options.drop_tail,
            drop_uncommitted=options.drop_uncommitted,
        )
        content = found.content
        ids = content.ids
        whose = f"member {ids.member_id:x} of cluster {ids.cluster_id:x}" if ids else "no ids"
        self._say(
            f"etcd {found.version or '2'} data, {whose}, term {content.term}, "
            f"raft index {content.raft_index}"
        )
        base = f"snapshot {found.snapshot.name}, then" if found.snapshot else "no snapshot,"
        left_out = _count(found.of_v3, "request")
        v3 = f"; {left_out} of the v3 API left out" if found.of_v3 else ""
        self._say(f"{base} {found.entries:,} log entries{v3}")
        for note in _notes(found):
            self._say(f"note: {note}")
        self._summary(content, target)
        if options.new_ids:
            content.ids = None
        return content

    def _from_document(self, source: str, target: str) -> Content:
        if source != "-" and not Path(source).exists():
            raise Refused(f"{source}: no such data directory or document", exit_status=EX_USAGE)
        name = "standard input" if source == "-" else source
        form = self._options.form or {".jsonl": "jsonl"}.get(Path(name).suffix)
        with nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
            content = content_of(document.read_file(file, name, form))
        self._summary(content, target)
        return content

    def _from_server(self, url: str, target: str) -> None:
        source = Source(self._connect(url), self._options.hidden)
        if is_url(target):
            source.keep_time()
        content = source.read()
        content.ids = None if self._options.new_ids else source.ids()
        self._say(f"{source.version()} at {url}, index {content.index}")
        for note in source.notes(content):
            self._say(f"note: {note}")
        if not is_url(target):
            content.events = self._history(source, content.index)
        self._summary(content, target)
        if self._options.dry_run:
            return
        if is_url(target):
            self._write_to_server(content, target, source)
        else:
            self._write_what_is_read(source, content, Path(target))

    # Targets.

    def _summary(self, content: Content, target: str) -> None:
        parts = [str(content.counts())]
        if not is_url(target):
            parts.append(f"index {content.index}")
        if content.events and not is_url(target):
            parts.append(f"events from {content.events[0].change.index}")
        by_kind = [document.what for document in content.documents if document.kind == Kind.AUTH]
        if by_kind:
            is_on = any(d.what == auth.SETTING and d.content == b"true" for d in content.documents)
            parts.append(_count(by_kind.count(auth.USER), "user"))
            parts.append(_count(by_kind.count(auth.ROLE), "role"))
            parts.append(f"auth {'on' if is_on else 'off'}")
        self._say(", ".join(parts))
        if is_url(target) and content.documents and by_kind:
            self._say("note: users and roles are imported into a data directory only")

    def _write(self, content: Content, target: str) -> None:
        if is_url(target):
            self._write_to_server(content, target, None)
            return
        held = write(content, Path(target), self._shown)
        self._done(f"written to {target} and read back: digest {held}, equal")

    def _done(self, text: str) -> None:
        self._say(f"{text}, in {monotonic() - self._begun:.1f} s")

    def _write_what_is_read(self, source: Source, content: Content, target: Path) -> None:
        """Write a store of what a server has, once that no longer changes."""
        if self._options.follow:
            self._wait(Tail(source, content.index))
            content = self._read_again(source, content)
        for _ in range(_ATTEMPTS):
            again: list[Content] = []

            def check(expected: Content = content, again: list[Content] = again) -> None:
                found = self._read_again(source, expected)
                again.append(found)
                # The index alone moves with what is not shown: a refresh, or a hidden key.
                if (found.index, found.digest()) != (expected.index, expected.digest()):
                    raise _Changed

            try:
                held = write(content, target, self._shown, check)
            except _Changed:
                content = again[0]
                continue
            self._done(f"written to {target} and read back: digest {held}, equal")
            if self._options.follow:
                self._say(f"cut over at {again[0].index}")
            return
        raise Refused(f"the source was changed during each of {_ATTEMPTS} reads: stop its writers")

    def _wait(self, tail: Tail) -> None:
        """Wait for the end of the writers; a directory is written behind it alone."""
        while not self._options.is_over():
            try:
                tail.next()
            except HistoryLost as lost:
                tail.index = max(tail.index, lost.first - 1, lost.index)
            self._report(tail)
        self._state("")

    def _report(self, tail: Tail) -> None:
        self._state(f"at {tail.index}, lag {tail.lag} events; end it when the writers have stopped")

    def _history(self, source: Source, index: int, known: Sequence[Event] = ()) -> list[Event]:
        events = history(
            source, index, known, lambda tail: self._state(f"events: {tail.index} of {index}")
        )
        self._state("")
        return events

    def _read_again(self, source: Source, content: Content) -> Content:
        found = source.read()
        found.ids = content.ids
        found.events = self._history(source, found.index, content.events)
        return found

    def _write_to_server(self, content: Content, url: str, source: Source | None) -> None:
        target = Target(self._connect(url), self._options.hidden)
        before = target.read()
        if not self._options.overwrite:
            target.check(content.nodes, before)
        others = any(path not in content.nodes for path in before)
        kept = {path: node for path, node in before.items() if path in content.nodes}
        changes = differences(content.nodes, kept)
        counted = self._counted(len(changes))
        ended = target.write(changes, overwrite=self._options.overwrite, done=counted)
        if ended:
            self._say(f"note: {_count(ended, 'key')} had ended before being written")
        if source is not None and self._options.follow:
            self._follow(Follower(source, target, content.index, others=others))
            return
        held = require_equal(content.nodes, target.read(), target.slowest_ns, others=True)
        self._done(f"written to {url} and read back: digest {held}, equal")

    def _counted(self, total: int) -> Callable[[int], None]:
        """Return what shows how many changes are made."""
        nothing: list[tuple[bytes, Node]] = [(b"", Node(b"", 0, 0))] * total
        items = iter(self._shown(nothing, total))

        def done(count: int) -> None:
            for _ in range(count):
                next(items, None)

        return done

    def _follow(self, follower: Follower) -> None:
        follower.follow(self._options.is_over, self._report)
        self._state("")
        end = follower.cut_over()
        self._done(
            f"cut over at {end.index}: {_count(end.refreshed, 'refreshed TTL')} and "
            f"{_count(end.other, 'other change')} taken over, digest {end.digest}, equal"
        )


class _Changed(Exception):
    """The source has changed while it was written."""


def _notes(found: directory.Found) -> list[str]:
    notes = list(found.notes)
    if found.tail is not None:
        notes.append(f"the log breaks off at {found.tail}")
    if found.uncommitted:
        notes.append(
            f"{_count(found.uncommitted, 'entry', 'entries')} beyond the commit index kept; "
            "--uncommitted drop leaves them out"
        )
    if found.dropped:
        notes.append(
            f"{_count(found.dropped, 'entry', 'entries')} beyond the commit index left out"
        )
    return notes


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def is_url(text: str) -> bool:
    """Return whether a source or target is a server."""
    return text.partition("://")[0] in ("http", "https", "unix", "unixs")
