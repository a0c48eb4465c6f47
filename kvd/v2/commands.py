"""Commands and reads of the key space, as plain values.

Keys are cleaned paths (`b"/a/b"`, the root is `b"/"`), values are byte strings. A `ttl_s` of None
means no expiration. Commands change the store and go through the committer; `Get` and `Watch` only
read it.

On the hot path these and other named tuples are made by `tuple.__new__` (`_new` in the modules that
do so): their own constructors are a Python call more for each.
"""

from __future__ import annotations

from typing import NamedTuple


class Set(NamedTuple):
    """Set a key, whether it exists or not."""

    key: bytes
    value: bytes
    dir: bool = False
    ttl_s: int | None = None
    refresh: bool = False


class Create(NamedTuple):
    """Create a key that must not exist."""

    key: bytes
    value: bytes
    dir: bool = False
    ttl_s: int | None = None


class CreateInOrder(NamedTuple):
    """Create a key below the directory `key`, named by the etcd index it gets."""

    key: bytes
    value: bytes
    dir: bool = False
    ttl_s: int | None = None


class Update(NamedTuple):
    """Change value and TTL of a file, or the TTL of a directory, that must exist."""

    key: bytes
    value: bytes
    ttl_s: int | None = None
    refresh: bool = False


class CompareAndSwap(NamedTuple):
    """Change a file whose value and modified index are as given (None and 0: any)."""

    key: bytes
    value: bytes
    prev_value: bytes | None
    prev_index: int
    ttl_s: int | None = None
    refresh: bool = False


class Delete(NamedTuple):
    """Remove a file, with `dir` an empty directory, with `recursive` a whole one."""

    key: bytes
    dir: bool = False
    recursive: bool = False


class CompareAndDelete(NamedTuple):
    """Remove a file whose value and modified index are as given (None and 0: any)."""

    key: bytes
    prev_value: bytes | None
    prev_index: int


class Condition(NamedTuple):
    """Condition on a key before a transaction; None and 0 match any."""

    key: bytes
    exists: bool = True
    dir: bool | None = None
    value: bytes | None = None
    modified_index: int = 0
    created_index: int = 0


Extras = tuple[tuple[bytes, bytes], ...]
"""Parameters that etcd does not know, names and values as they came; see parameters.py."""

Command = Set | Create | CreateInOrder | Update | CompareAndSwap | Delete | CompareAndDelete


class Transaction(NamedTuple):
    """Commands that are all applied if all conditions hold, and none of them otherwise.

    No key of a command is that of another one, or below it. `keys` are those of conditions and
    commands, joined: their length counts as that of a command's key.
    """

    keys: bytes
    when: tuple[Condition, ...]
    ops: tuple[Command, ...]


class Get(NamedTuple):
    """Read a node; of a directory also its visible children, with `recursive` all below them.

    Without `may_list` the client may not see the children of a directory. With `quorum` it sees all
    that was acknowledged before it came, wherever that was.
    """

    key: bytes
    recursive: bool = False
    sorted: bool = False
    may_list: bool = True
    extras: Extras = ()
    quorum: bool = False


class Watch(NamedTuple):
    """Wait for changes from the etcd index `wait_index` on (0: from now on)."""

    key: bytes
    recursive: bool = False
    stream: bool = False
    wait_index: int = 0
    extras: Extras = ()


Request = Command | Get | Watch
