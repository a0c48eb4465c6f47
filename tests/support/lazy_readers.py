"""Connections of clients that read at a pace, on a loop whose time is set."""

import asyncio
from collections.abc import Callable, Coroutine

from kvd.http.receiving import Receiving
from kvd.http.sending.outbox import Outbox
from kvd.http.sending.scheduler import SendScheduler
from kvd.limits.memory_budget import MemoryBudget, Piece
from tests.support.memory import MIB


def run(act: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run a coroutine function at once."""
    asyncio.run(act())


class Reader:
    """A connection that reads at a rate, by a clock of the test."""

    def __init__(self, memory: MemoryBudget, outbox: Outbox) -> None:
        self.outbox = outbox
        self.read_bytes = 0
        self.kept_bytes = 0
        self.is_cut = False

    @property
    def unsent_bytes(self) -> int:
        return self.outbox.unsent_bytes

    unread_bytes = unsent_bytes

    def send_some(self) -> int:
        return sum(map(len, self.outbox.slices()))

    def abort(self) -> None:
        self.is_cut = True
        self.outbox.clear()


class Loop:
    """An event loop's clock, and what it would call soon."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, call: Callable[[], None]) -> None:
        self.due.append(call)


def readers(
    memory: MemoryBudget, sending: SendScheduler, count: int, size: int = 2 * MIB
) -> list[Reader]:
    made = []
    for _ in range(count):
        outbox = Outbox()
        outbox.add(Piece(b"x" * size, memory))
        made.append(Reader(memory, outbox))
        sending.begins(made[-1])
    return made


class Upload:
    """A request that comes, or has come whole."""

    def __init__(self, receiving: Receiving, size: int, *, is_receiving: bool = True) -> None:
        self.held_bytes = size
        self.is_receiving = is_receiving
        self.is_given_up = False
        self._receiving = receiving
        receiving.take(self, size)

    def go_on(self) -> None:
        pass

    def give_up(self) -> None:
        self.is_given_up = True
        self._receiving.give_back(self.held_bytes)
