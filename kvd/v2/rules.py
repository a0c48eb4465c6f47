"""The rules of the etcd v2 key space: `decide` turns a command into a change, or refuses it.

Theory of operation. A command is decided on the state that all earlier commands of its batch have
left behind. `decide` only looks; what it returns is applied by `Pending.apply`
(storage/index/state.py), which checks nothing. So:

1. A refused command leaves no trace: no parents made, no index used.
2. An allowed command is one change, one etcd index (the next) and one event, however many nodes
   it makes or removes.
3. The decision depends on the nodes, the command, the next index and `now_ns` alone.

The order of the checks is etcd's, since it decides which error a client sees when several apply.
The tables are sections 3 and 4 of the behaviour that was recorded from etcd 3.4; in short:

    missing component      100, cause: the first missing one
    file among parents     104, cause: that file
    the root               107, but compare-and-delete: 102 without a cause
    a directory            102 for set, compare-and-swap, compare-and-delete, plain delete
    anything there         105 for create
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from kvd.storage.format.node import Node, Obstacle
from kvd.storage.format.records import Change, Kind
from kvd.v2.commands import (
    Command,
    CompareAndDelete,
    CompareAndSwap,
    Condition,
    Create,
    CreateInOrder,
    Delete,
    Set,
    Transaction,
    Update,
)
from kvd.v2.errors import (
    COMPARE_FAILED,
    DIRECTORY_NOT_EMPTY,
    KEY_EXISTS,
    KEY_NOT_FOUND,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    ROOT_READ_ONLY,
    ApiError,
)

# An error shows no more of each value that it compares.
_SHOWN_BYTES_MAX = 64 << 10
EXPIRATION_NS_MAX = (1 << 63) - 1
"""11 April 2262. A TTL that reaches beyond it never ends (etcd wraps around and loses the key)."""

_NS = 1_000_000_000
_new = tuple.__new__


class Nodes(Protocol):
    """The state as `decide` sees it: LMDB's, or a dict's in tests."""

    def find(self, path: bytes) -> Node | None:
        """Return the node at a cleaned path, or None."""

    def obstacle(self, path: bytes) -> Obstacle:
        """Return what keeps a path that `find` does not know from leading anywhere."""

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child, hidden or not."""


def expire(path: bytes, node: Node, index: int) -> Change:
    """Return the change that removes a node whose time has come."""
    return Change(Kind.EXPIRE, index, path, None, bool(node.dir_id), node.created_index)


def _set(nodes: Nodes, command: Set, index: int, now_ns: int) -> Change:
    key, value, is_dir, ttl_s, refresh = command
    node = nodes.find(key)
    if node is None:
        obstacle = nodes.obstacle(key)
        if obstacle.blocked or refresh:
            _refuse(obstacle)
    elif key == b"/":
        raise ApiError(ROOT_READ_ONLY, b"/")
    elif node.value is None:
        raise ApiError(NOT_A_FILE, key)
    elif refresh:
        value = node.value
    expiration_ns = 0 if ttl_s is None else _expiration_ns(ttl_s, now_ns)
    # Not by the named tuple's own constructor: this is the most frequent change.
    return _new(
        Change,
        (Kind.SET, index, key, None if is_dir else value, is_dir, index, expiration_ns, refresh),
    )


def _create(nodes: Nodes, command: Create, index: int, now_ns: int) -> Change:
    key, value, is_dir, ttl_s = command
    if key == b"/":
        raise ApiError(ROOT_READ_ONLY, b"/")
    if nodes.find(key) is not None:
        raise ApiError(KEY_EXISTS, key)
    obstacle = nodes.obstacle(key)
    if obstacle.blocked:
        _refuse(obstacle)
    expiration_ns = 0 if ttl_s is None else _expiration_ns(ttl_s, now_ns)
    return _new(
        Change,
        (Kind.CREATE, index, key, None if is_dir else value, is_dir, index, expiration_ns, False),
    )


def _create_in_order(nodes: Nodes, command: CreateInOrder, index: int, now_ns: int) -> Change:
    directory, value, is_dir, ttl_s = command
    key = b"%b/%020d" % (directory.rstrip(b"/"), index)
    return _create(nodes, _new(Create, (key, value, is_dir, ttl_s)), index, now_ns)


def _update(nodes: Nodes, command: Update, index: int, now_ns: int) -> Change:
    key, given, ttl_s, refresh = command
    if key == b"/":
        raise ApiError(ROOT_READ_ONLY, b"/")
    node = nodes.find(key)
    if node is None:
        _refuse(nodes.obstacle(key))
    before, created_index, _, _, _ = node
    value: bytes | None = given
    if before is None:
        if given:
            raise ApiError(NOT_A_FILE, key)
        value = None
    elif refresh:
        value = before
    expiration_ns = 0 if ttl_s is None else _expiration_ns(ttl_s, now_ns)
    fields = Kind.UPDATE, index, key, value, before is None, created_index, expiration_ns, refresh
    return _new(Change, fields)


def _compare_and_swap(nodes: Nodes, command: CompareAndSwap, index: int, now_ns: int) -> Change:
    key, value, prev_value, prev_index, ttl_s, refresh = command
    if key == b"/":
        raise ApiError(ROOT_READ_ONLY, b"/")
    node = nodes.find(key)
    if node is None:
        _refuse(nodes.obstacle(key))
    before, created_index, modified_index, _, _ = node
    if before is None:
        raise ApiError(NOT_A_FILE, key)
    _compare(before, modified_index, prev_value, prev_index)
    if refresh:
        value = before
    expiration_ns = 0 if ttl_s is None else _expiration_ns(ttl_s, now_ns)
    kind = Kind.COMPARE_AND_SWAP
    return _new(Change, (kind, index, key, value, False, created_index, expiration_ns, refresh))


def _delete(nodes: Nodes, command: Delete, index: int, _now_ns: int) -> Change:
    key, is_dir, recursive = command
    if key == b"/":
        raise ApiError(ROOT_READ_ONLY, b"/")
    node = existing(nodes, key)
    if node.value is None:
        if not (is_dir or recursive):
            raise ApiError(NOT_A_FILE, key)
        if not recursive and nodes.has_children(node.dir_id):
            raise ApiError(DIRECTORY_NOT_EMPTY, key)
    return Change(Kind.DELETE, index, key, None, node.value is None, node.created_index)


def _compare_and_delete(
    nodes: Nodes, command: CompareAndDelete, index: int, _now_ns: int
) -> Change:
    key, prev_value, prev_index = command
    node = existing(nodes, key)
    if node.value is None:
        raise ApiError(NOT_A_FILE, b"" if key == b"/" else key)
    _compare(node.value, node.modified_index, prev_value, prev_index)
    return Change(Kind.COMPARE_AND_DELETE, index, key, None, False, node.created_index)


class SeveralChanges(Exception):
    """A transaction is none of the commands that make one change: see `decide_all`."""


def _transaction(_nodes: Nodes, _transaction: Transaction, _index: int, _now_ns: int) -> NoReturn:
    raise SeveralChanges


RULES: dict[type, Callable[[Nodes, Any, int, int], Change]] = {
    Set: _set,
    CompareAndSwap: _compare_and_swap,
    Create: _create,
    CreateInOrder: _create_in_order,
    Update: _update,
    Delete: _delete,
    CompareAndDelete: _compare_and_delete,
    Transaction: _transaction,
}
"""What decides a command, by its type: see `decide`, which adds the index to a refusal."""


def decide(nodes: Nodes, command: Command, index: int, now_ns: int) -> Change:
    """Return the change that a command makes, which gets the etcd index `index`.

    Raises:
        ApiError: the command is refused; the error's index is the one before `index`.
    """
    try:
        return RULES[type(command)](nodes, command, index, now_ns)
    except ApiError as refusal:
        refusal.index = index - 1
        raise


def decide_all(nodes: Nodes, transaction: Transaction, index: int, now_ns: int) -> list[Change]:
    """Return the changes that a transaction makes, which get the etcd indexes from `index` on.

    All are decided on the state before it. As no key is that of another or below it, none of them
    finds anything else than it would behind the others.

    Raises:
        ApiError: a condition does not hold, or a command is refused: its `place` tells which one.
            The error's index is the one before `index`.
    """
    place = "when", 0
    try:
        for number, condition in enumerate(transaction.when):
            place = "when", number
            _require(nodes, condition)
        changes = []
        for number, command in enumerate(transaction.ops):
            place = "op", number
            changes.append(RULES[type(command)](nodes, command, index + number, now_ns))
    except ApiError as refusal:
        refusal.index = index - 1
        refusal.place = place
        raise
    return changes


def _require(nodes: Nodes, condition: Condition) -> None:
    """Refuse unless a condition holds."""
    key, exists, is_dir, value, modified_index, created_index = condition
    if not exists:
        if nodes.find(key) is not None:
            raise ApiError(KEY_EXISTS, key)
        return
    node = existing(nodes, key)
    if is_dir and node.value is not None:
        raise ApiError(NOT_A_DIRECTORY, key)
    if node.value is None and (is_dir is False or value is not None):
        raise ApiError(NOT_A_FILE, key)
    _compare(node.value or b"", node.modified_index, value, modified_index)
    if created_index not in (0, node.created_index):
        _compare(b"", node.created_index, None, created_index)


def existing(nodes: Nodes, key: bytes, index: int = 0) -> Node:
    """Return the node at a key, for a read at the etcd index `index`.

    Raises:
        ApiError: there is none: 100 or 104.
    """
    node = nodes.find(key)
    if node is None:
        _refuse(nodes.obstacle(key), index)
    return node


def _refuse(obstacle: Obstacle, index: int = 0) -> NoReturn:
    raise ApiError(NOT_A_DIRECTORY if obstacle.blocked else KEY_NOT_FOUND, obstacle.path, index)


def _compare(value: bytes, index: int, want_value: bytes | None, want_index: int) -> None:
    """Refuse unless both conditions hold; the cause names just those that do not."""
    if want_value in (None, value) and want_index in (0, index):
        return
    failed = []
    if want_value is not None and want_value != value:
        failed.append(b"[%b != %b]" % (_shown(want_value), _shown(value)))
    if want_index not in (0, index):
        failed.append(b"[%d != %d]" % (want_index, index))
    if failed:
        raise ApiError(COMPARE_FAILED, b" ".join(failed))


def _shown(value: bytes) -> bytes:
    """Return as much of a value as an error shows: to escape 20 MiB takes most of a second."""
    return value if len(value) <= _SHOWN_BYTES_MAX else value[:_SHOWN_BYTES_MAX] + b"..."


def _expiration_ns(ttl_s: int, now_ns: int) -> int:
    expiration_ns = now_ns + ttl_s * _NS
    return expiration_ns if expiration_ns <= EXPIRATION_NS_MAX else 0
