"""Expirations in a batch: in the order of their times, before the commands that came after them.

A command that came before a key's end finds the key. A batch takes a limited number of expirations,
so that commands need not wait for all of many: of the rest, only those go first that are in the way
of a command. So no command sees a key that had ended when it came.
"""

from __future__ import annotations

from kvd.core.batch.limits import EXPIRY_BYTES_MAX, BatchLimits
from kvd.core.batch.removals import Removals
from kvd.core.batch.round import Round
from kvd.core.clock import Clock
from kvd.core.watch.hub import Hub
from kvd.storage.format.node import Node
from kvd.storage.format.records import Change, encode_change
from kvd.storage.index.pending import Pending
from kvd.v2.commands import Command, Transaction
from kvd.v2.rules import expire

EXPIRED_MAX = 1000
"""How many expirations a batch takes without commands: about ten milliseconds."""
EXPIRED_WITH_COMMANDS_MAX = 300
# How many ended children of a directory are looked at, in one batch, to find one that has not.
_ENDED_CHILDREN_MAX = 2000


class NotKnownYet(Exception):
    """Whether a directory has children that have not ended would take too long to find out."""


class NodesAt:
    """The nodes as they were at a time: none that had ended by then blocks the command."""

    def __init__(self, pending: Pending, now_ns: int) -> None:
        self.find = pending.find
        self.obstacle = pending.obstacle
        self._pending = pending
        self._now_ns = now_ns

    def has_children(self, dir_id: int) -> bool:
        """Return whether a directory has a child that has not ended.

        Raises:
            NotKnownYet: those that have are too many to look at.
        """
        known = self._pending.has_living_children(dir_id, self._now_ns, _ENDED_CHILDREN_MAX)
        if known is None:
            raise NotKnownYet
        return known


class Expirations:
    """Adds what has ended to batches."""

    def __init__(self, clock: Clock, limits: BatchLimits, hub: Hub) -> None:
        self._clock = clock
        self._limits = limits
        self._hub = hub

    def expire(self, round_: Round, until_ns: int, left: int, size: int = 0) -> list[bytes]:
        """Expire what has ended, in order, as far as a batch takes it; return the records."""
        pending = round_.pending
        records: list[bytes] = []
        due, next_ns = pending.due(until_ns, left)
        for path, node in due:
            # What expires with its directory has no expiry of its own.
            if pending.find(path) != node:
                continue
            size += len(path) + EXPIRY_BYTES_MAX
            if pending.events and size + pending.replaced > self._limits.bytes_max:
                return records
            self._expire_node(round_, path, node, records)
        pending.due_ns = next_ns
        return records

    def make_way(
        self, round_: Round, command: Command | Transaction, came: int, left: int, size: int
    ) -> list[bytes]:
        """Expire what had ended when a command came, behind a batch of `size` bytes.

        If that is more than the `left` that the batch takes, at least what is in the way of the
        command. Returns the records.
        """
        came_ns = self._clock.at(came)
        size += len(command[0]) + EXPIRY_BYTES_MAX
        records = self.expire(round_, came_ns, left, size) if left > 0 else []
        several = (*command.when, *command.ops) if isinstance(command, Transaction) else (command,)
        for one in several:
            ended = round_.pending.first_ended(one.key, came_ns)
            if ended is not None:
                self._expire_node(round_, *ended, records)
        return records

    def note_removed(self, round_: Round, change: Change) -> None:
        """Note that a directory is about to be removed, for the watches below it."""
        if round_.removals is None:
            round_.removals = Removals(round_.pending, self._hub)
            round_.removed = round_.removals.found
        round_.removals.note(change)

    def _expire_node(self, round_: Round, path: bytes, node: Node, records: list[bytes]) -> None:
        change = expire(path, node, round_.pending.index + 1)
        record = encode_change(change)
        records.append(record)
        if change.dir:
            self.note_removed(round_, change)
        round_.pending.change(change, round_.time_ns, record)
