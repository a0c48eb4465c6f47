"""Writing keys to a running server: ordinary writes, with indexes of its own; read back after it.

A key that is there already is a conflict, unless it is to be overwritten. Of a kvd up to 128 keys
go in one transaction, of etcd each goes alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import NamedTuple
from urllib.parse import quote_from_bytes

import cbor2

from kvd.client.errors import CompareFailed, KeyExists, KeyNotFound, NotAFile
from kvd.migrate import times
from kvd.migrate.errors import Conflict, Refused
from kvd.migrate.live import Caller, Source
from kvd.storage import disk
from kvd.storage.format.node import Node

_FORM = "application/x-www-form-urlencoded"
_OPS_MAX = 128
_OPS_BYTES_MAX = 1 << 20
_SHOWN_MAX = 3
_TTL_TOLERANCE_NS = 2 * times.NS

Nodes = Mapping[bytes, Node]


class Change(NamedTuple):
    """A write that makes a node of the target that of the source: None for a removal."""

    path: bytes
    node: Node | None


class Target:
    """A server that is written to.

    Attributes:
        slowest_ns: The longest time that a write has taken: a TTL counts from some moment in it;
            more if its clock is another than that of this machine.
    """

    def __init__(self, caller: Caller, hidden: Iterable[str] = ()) -> None:
        self._caller = caller
        self.slowest_ns = 0
        self._hidden = tuple(hidden)
        self._source = Source(caller)
        self._source.keep_time()
        if self._source.skew_ns:
            self.slowest_ns += times.NS  # the clock is known to a second

    def read(self) -> Nodes:
        """Return all keys of it; of etcd without hidden ones that were not named."""
        self._source.hidden = [key for key in self._hidden if self._has(key)]
        return self._source.read().nodes

    def _has(self, key: str) -> bool:
        try:
            self._caller.call("GET", self._caller.path(key))
        except KeyNotFound:
            return False
        return True

    def check(self, nodes: Nodes, there: Nodes) -> None:
        """Check that none of these keys is there.

        Raises:
            Conflict: some are.
        """
        found = [
            path
            for path, node in nodes.items()
            if path in there and not (node.dir_id and there[path].dir_id)
        ]
        if found:
            shown = ", ".join(path.decode("utf-8", "replace") for path in found[:_SHOWN_MAX])
            more = f" and {len(found) - _SHOWN_MAX:,} more" if len(found) > _SHOWN_MAX else ""
            raise Conflict(f"the target has {shown}{more}; --overwrite replaces them")

    def write(
        self, changes: Iterable[Change], *, overwrite: bool, done: Callable[[int], None]
    ) -> int:
        """Make changes; return how many keys had ended before they were written.

        Args:
            changes: what is to be changed, directories before what is in them.
            overwrite: whether a key may be there; else its value is never replaced.
            done: called with a number of changes once they are made.

        Raises:
            Conflict: others have made one of the keys meanwhile.
            KvdError: the server has refused one, or does not answer.
        """
        rest = iter(changes)
        ended = 0
        while batch := list(islice(rest, _OPS_MAX)):
            alive = [change for change in batch if _ttl_s(change.node) != 0]
            ended += len(batch) - len(alive)
            begun_ns = disk.wall_clock_ns()
            try:
                self._write(alive, overwrite=overwrite)
            except (KeyExists, CompareFailed, NotAFile) as error:
                raise Conflict(
                    f"the target has {error.cause} meanwhile; what was written stays"
                ) from error
            self.slowest_ns = max(self.slowest_ns, disk.wall_clock_ns() - begun_ns)
            done(len(batch))
        return ended

    def _write(self, changes: list[Change], *, overwrite: bool) -> None:
        for group in self._groups(changes):
            if len(group) > 1:
                ops = [_op(change, overwrite=overwrite) for change in group]
                body = json.dumps({"ops": ops}).encode()
                self._caller.call("POST", "/v2/txn", body=body, content_type="application/json")
            else:
                self._put(group[0], overwrite=overwrite)

    def _groups(self, changes: list[Change]) -> Iterator[list[Change]]:
        """Yield changes in groups that one request makes.

        Only files whose names and values are text are in a transaction.
        """
        group: list[Change] = []
        size = 0
        for change in changes:
            if "txn" not in self._source.extras or not _is_file_of_text(change):
                if group:
                    yield group
                yield [change]
                group, size = [], 0
                continue
            assert change.node is not None
            # As JSON a byte takes six at most.
            length = 6 * len(change.path + (change.node.value or b""))
            if group and size + length > _OPS_BYTES_MAX:
                yield group
                group, size = [], 0
            group.append(change)
            size += length
        if group:
            yield group

    def _put(self, change: Change, *, overwrite: bool) -> None:
        path = self._caller.path(change.path.decode("utf-8", "surrogateescape"))
        node = change.node
        if node is None:
            with suppress(KeyNotFound):
                self._caller.call("DELETE", path, query={"recursive": True})
            return
        form = f"ttl={_ttl_s(node)}&" if node.expiration_ns else ""
        if node.dir_id:
            self._put_directory(path, form, overwrite=overwrite)
            return
        form += "value=" + quote_from_bytes(node.value or b"", safe="")
        if not overwrite:
            form += "&prevExist=false"
        self._send(path, form)

    def _put_directory(self, path: str, form: str, *, overwrite: bool) -> None:
        try:
            self._send(path, form + "dir=true&prevExist=false")
        except KeyExists:
            # Without a TTL it loses the one that it has.
            if form or overwrite:
                self._send(path, (form or "ttl=&") + "dir=true&prevExist=true")

    def _send(self, path: str, form: str) -> None:
        self._caller.call("PUT", path, body=form.encode("ascii"), content_type=_FORM)


def _is_file_of_text(change: Change) -> bool:
    if change.node is None or change.node.value is None:
        return False
    try:
        change.node.value.decode()
        change.path.decode()
    except UnicodeDecodeError:
        return False
    return True


def _op(change: Change, *, overwrite: bool) -> dict[str, object]:
    path, node = change
    assert node is not None
    assert node.value is not None
    op: dict[str, object] = {
        "action": "set" if overwrite else "create",
        "key": path.decode(),
        "value": node.value.decode(),
    }
    if node.expiration_ns:
        op["ttl"] = _ttl_s(node)
    return op


def _ttl_s(node: Node | None) -> int | None:
    """Return the seconds that are left of a node, rounded up; 0 if it has ended, None for none."""
    if node is None or not node.expiration_ns:
        return None
    left_ns = node.expiration_ns - disk.wall_clock_ns()
    return max(-(-left_ns // times.NS), 0)


def differences(source: Nodes, target: Nodes, slack_ns: int = 0) -> list[Change]:
    """Return what makes the target as the source is; what must go comes first.

    Indexes are not compared; times of expiration are, to two seconds and `slack_ns`.
    """
    gone = [path for path in target if path not in source]
    found = [Change(path, None) for path in sorted(gone) if path.rpartition(b"/")[0] not in gone]
    made = {path.rpartition(b"/")[0] for path in source}
    for path, node in sorted(source.items()):
        other = target.get(path)
        if other is not None and bool(other.dir_id) != bool(node.dir_id):
            found.append(Change(path, None))
            other = None
        is_made = bool(node.dir_id) and not node.expiration_ns and path in made
        if not is_made if other is None else not _is_equal(node, other, slack_ns):
            found.append(Change(path, node))
    return found


def _is_equal(node: Node, other: Node, slack_ns: int) -> bool:
    apart_ns = abs(node.expiration_ns - other.expiration_ns)
    has_same_end = bool(node.expiration_ns) == bool(other.expiration_ns)
    return node.value == other.value and has_same_end and apart_ns <= _TTL_TOLERANCE_NS + slack_ns


def digest(nodes: Nodes) -> str:
    """Return the digest of what clients see apart from indexes: keys, values, which of them end."""
    hashed = hashlib.sha256()
    for path, node in sorted(nodes.items()):
        hashed.update(cbor2.dumps([path, node.value, bool(node.expiration_ns)]))
    return hashed.hexdigest()


def require_equal(source: Nodes, target: Nodes, slack_ns: int = 0, *, others: bool) -> str:
    """Return the digest of both; of the target that of the source's keys alone if it has `others`.

    Raises:
        Refused: they are not equal.
    """
    kept = {path: node for path, node in target.items() if path in source or not others}
    # Keys may have ended on either side in between.
    now_ns = disk.wall_clock_ns()
    soon_ns = now_ns + times.NS
    alive = {path: node for path, node in source.items() if not 0 < node.expiration_ns <= soon_ns}
    apart = [
        change.path
        for change in differences(alive, kept, slack_ns)
        if change.path in alive or not 0 < kept[change.path].expiration_ns <= soon_ns
    ]
    if apart:
        shown = ", ".join(path.decode("utf-8", "replace") for path in apart[:_SHOWN_MAX])
        raise Refused(f"read back, {len(apart):,} keys differ from the source: {shown}")
    return digest({path: node for path, node in kept.items() if path in alive})
