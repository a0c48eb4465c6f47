"""A data directory of etcd 2.0 to 3.5 as a whole: the newest snapshot, and the log behind it.

    [member/]snap/<term>-<index>.snap     snapshot.py
    [member/]wal/<number>-<index>.wal     log.py; or in a directory of its own (`--wal-dir`)

etcd locks the segments of its log while it runs. Nothing here is written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from struct import Struct

from kvd.migrate.content import Content, filler, without_gaps
from kvd.migrate.errors import Damaged, Refused, Running
from kvd.migrate.etcd import snapshot, users
from kvd.migrate.etcd.entries import Asked, ClusterVersion, OfV3, Request, asked
from kvd.migrate.etcd.log import Entry, Log
from kvd.migrate.etcd.nodes import StoredNode
from kvd.migrate.etcd.segments import Segment, Tail, segments
from kvd.migrate.etcd.store import VERSION, Store
from kvd.migrate.times import NS
from kvd.storage.format.event import Event
from kvd.storage.format.identity import NewIds
from kvd.storage.format.node import Node

_FLOCK = Struct("hhqqi4x")  # struct flock of Linux on machines of 64 bits
_OLD = ("log", "conf", "snapshot")
_KEYS = b"/1"
_REFUSING = (3, 5)  # the first version that refuses to update a directory


@dataclass
class Found:
    """The content of a data directory, and what there is to say of it.

    Attributes:
        content: The store.
        version: Of the cluster, as `3.4`; empty if it does not say.
        snapshot: The snapshot that was read, or None for the beginning of the log.
        entries, of_v3: How many entries of the log were replayed, and how many of these were
            requests of the v3 API, which are not imported.
        uncommitted: How many entries behind the commit index were kept.
        dropped: As many were left out.
        tail: Where the log breaks off, or None.
        notes: What an operator should know.
    """

    content: Content
    version: str
    snapshot: Path | None
    entries: int
    of_v3: int
    uncommitted: int
    dropped: int
    tail: Tail | None
    notes: list[str] = field(default_factory=list)


def is_etcd(path: Path) -> bool:
    """Return whether a directory looks like a data directory of etcd."""
    return any((path / room).is_dir() for room in ("member", "snap", "wal")) or all(
        (path / name).exists() for name in _OLD[:2]
    )


def read(
    path: Path,
    *,
    wal_dir: Path | None = None,
    force: bool = False,
    drop_tail: bool = False,
    drop_uncommitted: bool = False,
) -> Found:
    """Read a data directory.

    Args:
        path: the directory.
        wal_dir: the directory of its log, if that is elsewhere.
        force: read it even while etcd runs on it: what is durable.
        drop_tail: take a damaged last record for the end of the log.
        drop_uncommitted: leave out the entries behind the commit index.

    Raises:
        Running: etcd runs on it.
        Damaged: a file is damaged.
        Refused: it is no data directory of these versions, or holds nothing of the v2 API.
    """
    member = path / "member" if (path / "member").is_dir() else path
    wal = wal_dir or member / "wal"
    _check_kind(path, member, wal)
    files = segments(wal)
    if not force and any(_is_locked(segment.path) for segment in files):
        raise Running(path)
    base, faults = snapshot.newest(member / "snap")
    start = base.number if base else 0
    log = Log(_from(files, start, wal), start, drop_tail=drop_tail)
    _check_reach(log, start, wal)
    entries = log.entries
    kept = [entry for entry in entries if not drop_uncommitted or entry.number <= log.commit]
    requests = [asked(entry) for entry in kept]
    store = _store(base, requests)
    of_v3 = _replay(store, requests, wal)
    found = Found(
        content=_content(store, log, kept[-1] if kept else None, base),
        version=_version(store),
        snapshot=base.path if base else None,
        entries=len(kept),
        of_v3=of_v3,
        uncommitted=sum(entry.number > log.commit for entry in kept),
        dropped=len(entries) - len(kept),
        tail=log.tail,
        notes=[f"{fault}; what is older than that is read instead" for fault in faults],
    )
    if log.is_full:
        found.notes.append(
            f"{files[-1].path.name} ends with a record, without the space that etcd allocates "
            "ahead: what followed may be missing"
        )
    if store.replaced:
        found.notes.append(
            f"{store.replaced} values of the snapshot hold U+FFFD: etcd has written it for bytes "
            "that are no UTF-8"
        )
    found.notes += users.doubts(found.content.documents)
    if not found.content.nodes and not any(e.change.key != b"/_etcd" for e in found.content.events):
        raise Refused(
            f"{path}: holds no keys of the v2 API"
            + (
                " (those of the v3 API are not imported)"
                if (member / "snap" / "db").exists()
                else ""
            )
        )
    return found


def _check_kind(path: Path, member: Path, wal: Path) -> None:
    if all((path / name).exists() for name in _OLD[:2]):
        raise Refused(f"{path}: is of etcd 0.4; start etcd 2 on it once, which converts it")
    if not wal.is_dir() or not (member / "snap").is_dir():
        raise Refused(f"{path}: is no data directory of etcd: expected snap/ and wal/ in {member}")


def _from(files: list[Segment], start: int, wal: Path) -> Sequence[Segment]:
    """Return the segments that hold what follows entry `start`."""
    early = [place for place, segment in enumerate(files) if segment.first <= start]
    if not early:
        first = f"the log begins with entry {files[0].first}" if files else "there is no log"
        raise Damaged(f"{wal}: {first}, expected one that begins with {start} or before")
    return files[early[-1] :]


def _check_reach(log: Log, start: int, wal: Path) -> None:
    """Check that snapshot and log meet."""
    if log.last < start:
        raise Damaged(
            f"{wal}: the log ends with entry {log.last}, before the snapshot's, {start}: "
            "its end is missing"
        )
    if log.last > (log.entries[-1].number if log.entries else start):
        raise Damaged(f"{wal}: the log knows a snapshot of entry {log.last}, which is missing")


def _is_locked(path: Path) -> bool:
    """Return whether a process has locked a file, in either way that etcd's versions do."""
    fd = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        asked_for = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        held = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked_for)
        return bool(_FLOCK.unpack(held)[0] != fcntl.F_UNLCK)
    finally:
        os.close(fd)


def _store(base: snapshot.Snapshot | None, requests: Sequence[Asked]) -> Store:
    """Return the store of a snapshot, with the rules of the etcd that has the directory.

    These are for all requests, whichever version has written them: an etcd that starts on a
    directory replays what follows the snapshot by its own rules.
    """
    try:
        store = Store(base.store if base else None)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        assert base is not None
        raise Damaged.at(base.path, 0, f"is in no known form: {error!r}") from None
    versions = [version for request in requests if (version := _set_version(request))]
    store.updates_dirs = _parts(versions[-1] if versions else _version(store)) < _REFUSING
    return store


def _set_version(request: Asked) -> str:
    """Return the version of the cluster that a request sets, empty if none."""
    match request:
        case Request(method=b"PUT", path=path, value=version) if path == VERSION:
            return version.decode("utf-8", "replace")
        case ClusterVersion():
            return request.version.decode("utf-8", "replace")
    return ""


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def _replay(store: Store, requests: Sequence[Asked], wal: Path) -> int:
    """Replay requests; return how many of them were of the v3 API."""
    ticks = _ticks(requests, wal)
    for request, tick_ns in zip(requests, ticks, strict=True):
        store.apply(request, partial(_time, tick_ns))
    return sum(isinstance(request, OfV3) for request in requests)


def _time(tick_ns: int, expiration_ns: int) -> int:
    """Return the time of a request, from the next time that the log tells.

    An expiration is a whole number of seconds behind the request, and while there are any etcd logs
    a time twice a second.
    """
    return tick_ns - (tick_ns - expiration_ns) % NS if expiration_ns else tick_ns


def _ticks(requests: Sequence[Asked], wal: Path) -> list[int]:
    """Return for each request the next time that the log tells, or the last one of all."""
    times = [
        request.time_ns if isinstance(request, Request) and request.time_ns > 0 else 0
        for request in requests
    ]
    known = next((time_ns for time_ns in reversed(times) if time_ns), 0)
    known = known or max((path.stat().st_mtime_ns for path in wal.glob("*.wal")), default=0)
    ticks = []
    for time_ns in reversed(times):
        known = time_ns or known
        ticks.append(known)
    return ticks[::-1]


def _content(store: Store, log: Log, last: Entry | None, base: snapshot.Snapshot | None) -> Content:
    has_ids = log.node_id and log.cluster_id
    return Content(
        nodes=_nodes(store.find(_KEYS)),
        index=store.index,
        events=without_gaps(
            (_shown(event) for event in store.events if event.change.index > 1), store.index
        ),
        documents=users.documents(store),
        ids=NewIds(log.cluster_id, log.node_id) if has_ids else None,
        raft_index=last.number if last else base.number if base else 0,
        term=log.term,
    )


def _nodes(top: StoredNode | None) -> dict[bytes, Node]:
    """Return the nodes below one, each before its children."""
    found: dict[bytes, Node] = {}
    waiting = [top] if top is not None else []
    while waiting:
        node = waiting.pop()
        if node is not top:
            found[node.path[len(_KEYS) :]] = node.as_node()
        waiting += (node.children or {}).values()
    return found


def _shown(event: Event) -> Event:
    """Return an event with the key that clients know, or what fills its place."""
    key = event.change.key
    if not key.startswith(_KEYS + b"/"):
        return filler(event.change.index, event.time_ns)
    return event._replace(change=event.change._replace(key=key[len(_KEYS) :]))


def _version(store: Store) -> str:
    node = store.find(VERSION)
    text = (node.value or b"").decode("utf-8", "replace") if node is not None else ""
    return ".".join(text.split(".")[:2])
