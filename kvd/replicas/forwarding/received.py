"""Commands that other replicas have forwarded to this one, which leads.

A command that comes twice in one lead, after a link was lost, is queued once. For that the highest
counter of each process is enough: a process sends what it has to the leader of an epoch in the
order of its counters, and after a loss of the link everything again from its beginning. What has
come out as a refusal is kept for a while, since the message may have been lost with the link; a
success needs no message, because the log has the rid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from kvd.core.committer import Committer
from kvd.replicas.forwarding.command_codec import AnyCommand, from_plain, plain_refusal
from kvd.replicas.forwarding.pending import PROCESS_BYTES
from kvd.replicas.links import LinkError
from kvd.storage.format.records import RID_BYTES
from kvd.v2.commands import Command, Transaction
from kvd.v2.errors import RAFT_INTERNAL, ApiError, RouteError

ANSWERS_MAX = 10_000
"""How many refusals are kept; longer ones than this many bytes are not."""
_KEPT_BYTES_MAX = 4096

_UNREADABLE = b"the leader runs another version, which does not know this command"


class Sender(Protocol):
    """A link, as far as it is needed here."""

    def send(self, name: str, *fields: object) -> None:
        """Queue a message; LinkError if the link has ended."""


class _Process:
    """A process that forwards: its highest counter, and its newest link."""

    __slots__ = ("highest", "link")

    def __init__(self) -> None:
        self.highest = 0
        self.link: Sender | None = None


class Received:
    """Takes them, each once, and reports what the log does not say.

    Attributes:
        epoch: The lead in which commands are taken; 0 while there is none.
    """

    def __init__(self, committer: Committer, applied_seq: Callable[[], int]) -> None:
        self._committer = committer
        self._applied_seq = applied_seq
        self._processes: dict[bytes, _Process] = {}
        self._answers: dict[bytes, tuple[Any, ...]] = {}
        self._lead = 0
        self.epoch = 0

    def begin(self, epoch: int) -> None:
        """Take the commands that are for this lead."""
        if epoch != self._lead:
            self._processes.clear()
            self._answers.clear()
        self._lead = self.epoch = epoch

    def end(self) -> None:
        """Take no more; what is queued is decided in this lead, or given back."""
        self.epoch = 0

    def take(self, link: Sender, epoch: int, items: list[Any]) -> None:
        """Queue what came in one message.

        Raises:
            LinkError: it is no such message, or the link has ended.
        """
        rids = [_rid_of(item) for item in items]
        if epoch != self.epoch or not epoch:
            link.send("notleader", epoch, rids)
            return
        for rid, (_, command) in zip(rids, items, strict=True):
            self._take(link, rid, command)

    def give_back(self, rids: Iterable[bytes]) -> None:
        """Tell those that have forwarded them that they were not decided, and will not be here."""
        of: dict[bytes, list[bytes]] = {}
        for rid in rids:
            of.setdefault(rid[:PROCESS_BYTES], []).append(rid)
        for name, its in of.items():
            process = self._processes.get(name)
            if process is not None:
                self._send(process, ("notleader", self._lead, its))

    def unlink(self, link: Sender) -> None:
        """Send nothing more there."""
        for process in self._processes.values():
            if process.link is link:
                process.link = None

    def _take(self, link: Sender, rid: bytes, item: Any) -> None:
        process = self._processes.setdefault(rid[:PROCESS_BYTES], _Process())
        process.link = link
        counter = int.from_bytes(rid[PROCESS_BYTES:])
        if counter <= process.highest:  # it was queued before
            if rid in self._answers:
                link.send(*self._answers[rid])
            return
        process.highest = counter
        done = _Done(self, process, rid)
        try:
            self._queue(from_plain(item), done, rid)
        except ValueError:
            done(ApiError(RAFT_INTERNAL, _UNREADABLE))

    def _queue(self, command: AnyCommand, done: Callable[[Any], None], rid: bytes) -> None:
        if isinstance(command, Command | Transaction):
            self._committer.forward(command, done, rid)
        else:
            self._committer.submit_document(command, done, rid)

    def report(self, process: _Process, rid: bytes, outcome: object) -> None:
        """Send the outcome of a command, unless the log says it."""
        if isinstance(outcome, ApiError | RouteError):
            refusal = plain_refusal(outcome)
            self._answer(process, ("no", self._lead, rid, self._applied_seq(), refusal))
        elif outcome == []:
            self._answer(process, ("done", self._lead, rid, self._applied_seq()))

    def _answer(self, process: _Process, message: tuple[Any, ...]) -> None:
        refusal = message[4] if len(message) > 4 else []
        if sum(len(field) for field in refusal if isinstance(field, bytes)) <= _KEPT_BYTES_MAX:
            self._answers[message[2]] = message
            if len(self._answers) > ANSWERS_MAX:
                del self._answers[next(iter(self._answers))]
        self._send(process, message)

    @staticmethod
    def _send(process: _Process, message: tuple[Any, ...]) -> None:
        if process.link is not None:
            with suppress(LinkError):  # it is sent again over the next one
                process.link.send(*message)


class _Done:
    """Gets the outcome of one command."""

    __slots__ = ("_process", "_received", "_rid")

    def __init__(self, received: Received, process: _Process, rid: bytes) -> None:
        self._received = received
        self._process = process
        self._rid = rid

    def __call__(self, outcome: object) -> None:
        self._received.report(self._process, self._rid, outcome)


def _rid_of(item: Any) -> bytes:
    match item:
        case [bytes(rid), list()] if len(rid) == RID_BYTES:
            return rid
        case _:
            raise LinkError(f"no forwarded command: {item!r:.60}")
