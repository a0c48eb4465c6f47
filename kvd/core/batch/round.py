"""One batch from its first decision to its responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kvd.core.batch.removals import Removals
from kvd.storage.format.event import Event
from kvd.storage.index.pending import Pending
from kvd.v2.commands import Command, CompareAndDelete, CompareAndSwap, Delete, Transaction
from kvd.v2.errors import ApiError, RouteError

log = logging.getLogger(__name__)

_Outcome = TypeVar("_Outcome")
Outcome = Event | ApiError
Done = Callable[[Outcome], None]
AllDone = Callable[[list[Event] | ApiError], None]
Queued = tuple[Any, Callable[[Any], None], int]
"""A command with its `Done`, or a transaction with its `AllDone`; and the clock's `raw_ns` when it
was queued."""
Answers = list[tuple[Done, Command, Outcome]]
"""The outcomes of the commands of a batch."""
Replies = Sequence[tuple[Callable[[Any], None], object]]
"""The outcomes of its changes of documents."""
REMOVING = (Delete, CompareAndDelete)
# A refused transaction is counted as this, unless one of its operations was refused.
_CONDITION = CompareAndSwap(b"", b"", None, 0)


# Large values that commands look at and do not change, beside those of the first: 10 ms.
_LOADED_BYTES_MAX = 4 << 20


class Round:
    """One batch, and all that get a response to it.

    Attributes:
        pending: What it changes, and its events.
        time_ns: When it began, on the store's clock.
        queued: The clock's `raw_ns` when the first of its commands was queued.
        answers: The outcomes of its commands.
        replies: The outcomes of changes of documents.
        removals: The directories that it removes; None without any.
        removed: By the index of each removal, the watched paths that it takes along.
        pays: Whether it logs what the start had no room for.
        rids: Those of the events of forwarded transactions, by index.
        taken: The queued commands that it holds, in their order, where they may have to go back.
        taken_documents: The same of changes of documents.
        is_followed: Whether another member has decided it.
        rendered: What a `Render` has prepared for the `Respond` that goes with it; at first None.
    """

    # What is rare stays here, in the class, until it comes.
    replies: Replies = ()
    removals: Removals | None = None
    removed: dict[int, list[bytes]] = {}  # noqa: RUF012 -- never changed here
    pays = False
    is_followed = False
    rids: Mapping[int, bytes] = {}
    taken: Sequence[Queued] = ()
    taken_documents: Sequence[tuple[Any, Callable[[Any], None]]] = ()
    rendered: tuple[Any, ...] = (None,)
    _loaded_max: int | None = None

    def __init__(self, pending: Pending, time_ns: int, queued: int) -> None:
        self.pending = pending
        self.time_ns = time_ns
        self.queued = queued
        self.answers: Answers = []

    def has_loaded_much(self) -> bool:
        """Return whether so many large values were looked at that others should come first.

        To be asked after each command that may have looked at some without changing them.
        """
        loaded = self.pending.loaded_bytes
        if self._loaded_max is None:
            self._loaded_max = loaded + _LOADED_BYTES_MAX
        return loaded > self._loaded_max

    def answer_all(self, refusal: ApiError) -> None:
        """Respond to all commands and documents with the same refusal."""
        for done, _, _ in self.answers:
            respond_to(done, refusal)
        for replied, _ in self.replies:
            respond_to(replied, RouteError(500, refusal.cause.decode()))


class Ends:
    """Waits for the ends of batches: whether each was committed; also where none begins."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting: list[asyncio.Future[bool]] = []
        self._loop = loop

    def next(self) -> asyncio.Future[bool]:
        """Return a future of the next end."""
        end: asyncio.Future[bool] = self._loop.create_future()
        self.waiting.append(end)
        return end

    def notify(self, *, committed: bool) -> None:
        """Notify those that wait."""
        ends = self.waiting.copy()
        self.waiting.clear()
        for end in ends:
            if not end.done():
                end.set_result(committed)


Render = Callable[[Round], None]
"""Prepares responses to a batch that is not durable yet: none of them may leave."""
Respond = Callable[[Round, float], int]
"""Counts the outcomes of a durable batch, which took so many seconds, and responds with them.

Returns how many of its events no command has asked for: what has expired."""


def prepare_nothing(_round: Round) -> None:
    """Leave all to the `Respond`: a `Render`."""


def counted(command: Command | Transaction) -> Command:
    """Return the command as which a refusal is counted."""
    return _CONDITION if isinstance(command, Transaction) else command


def respond_to(done: Callable[[_Outcome], None], outcome: _Outcome) -> None:
    """Pass an outcome to its callback; an exception there is logged and ends nothing else."""
    try:
        done(outcome)
    except Exception:
        log.exception("an answer could not be given")
