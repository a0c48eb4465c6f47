"""The interface of the consensus engine that orders the log of several replicas.

An engine holds one log per store: frames 1, 2, 3, ... of which it keeps the last ones, each an
opaque payload (`storage/format/records.py`) with the chain value after it: 8 bytes that name the
history up to there. The engine compares payloads and chain values and never parses them.

Safety rests on one rule, the fence: a frame is written only while the leader's epoch is the
current one and the log ends with exactly the frame before. Leases, clocks and connections decide
how soon another replica leads, never whether a frame is written once.

Numbers: `seq`, `epoch`, `lease` and `revision` are integers from 0 to 2^63 - 1. A revision counts
all changes of the engine; an epoch is the revision that made a replica the leader, so epochs grow
and never return, and every frame of an older leader has a revision below a newer epoch. `*_ns` are
Unix time in nanoseconds, for people to read only.

All calls may take as long as the engine is silent; a caller that cannot wait cancels them.
Cancelling a call says nothing about what it did.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

CHAIN_BYTES = 8
SECRET_BYTES = 32
NO_LIMIT = (1 << 63) - 1
"""The limit of an engine that has none."""


class EngineError(Exception):
    """Base of the errors of an engine; each subclass says what is known after it."""


class Fenced(EngineError):
    """The frame of this append was not written and never will be; this epoch has ended."""


class OutcomeUnknown(EngineError):
    """The epoch has ended, and whether the frame was written can no longer be seen.

    An attempt got no response, and since then the log was trimmed past the frame. Its commands must
    not be sent again. The replica is behind the trim and has to install a snapshot.
    """


class EngineFull(EngineError):
    """The engine has no room: this frame was not written, and the same epoch may go on."""


class Trimmed(EngineError):
    """The frame that `tail` is to begin with is no longer in the log: a snapshot is needed."""


class OtherHistory(EngineError):
    """The engine's log is not the continuation of the caller's: wiped, restored or another's."""


class EngineRefused(EngineError):
    """The engine cannot be used as it is: its version, its rights, its format. For an operator."""


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials for an engine; paths of PEM files, empty for none."""

    user: str = ""
    password: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


@dataclass(frozen=True, slots=True)
class Meta:
    """The values that the log was made with; the same for all replicas, for ever.

    `secret` is 32 random bytes by which the replicas of this log authenticate each other.
    """

    cluster_id: int
    secret: bytes
    made_by: str
    made_at_ns: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as the others see it when it leads; `peer` is its URL for other replicas."""

    id: int
    name: str
    peer: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class Lead:
    """A won election: the epoch for `append` and `confirm`, the lease that ends without `renew`."""

    epoch: int
    lease: int


@dataclass(frozen=True, slots=True)
class Leadership:
    """The leader from revision `revision` on; `leader` and `lead` are None while there is none."""

    revision: int
    leader: Candidate | None = None
    lead: Lead | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of the log and the revision of the engine that wrote it."""

    seq: int
    payload: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class End:
    """The last frame of the log: its number and the chain value after it."""

    seq: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that the engine holds, and how many it may: `used` in data, `allocated` in its file.

    `is_full` when the engine refuses writes, whatever the numbers say.
    """

    used: int
    allocated: int
    limit: int
    is_full: bool = False


class Engine(Protocol):
    """One replica's way to the log. Its calls may run at the same time, but for `append`."""

    async def open(
        self, cluster_id: int, seq: int, chain: bytes, *, made_by: str, made_at_ns: int
    ) -> Meta:
        """Make the log, empty and beginning after frame `seq`; or return what an existing one is.

        Of several replicas that open at once, one makes the log and all return its `Meta`. The
        caller compares `cluster_id`, and `end()` with its own position.

        Raises:
            EngineRefused: the engine must not be used; the text says why.
            OtherHistory: the log is incomplete: part of it was deleted.
        """

    async def campaign(self, me: Candidate) -> Lead | None:
        """Become the leader if there is none; else None.

        At most one replica leads at any revision. The caller calls `renew` at least four times per
        lease, `append` with the epoch, and `resign` before it ends.

        Raises:
            EngineFull: the engine has no room for an election.
        """

    async def append(
        self, epoch: int, seq: int, prev_chain: bytes, chain: bytes, payload: bytes
    ) -> None:
        """Write frame `seq` after (`seq - 1`, `prev_chain`): on return it is durable, exactly once.

        Durable means: at a majority of the engine's members. Without a definite response the same
        bytes are sent again until one comes, so the call does not return before the outcome is
        known. One at a time per replica. The payload may have any size. After a cancelled append
        only the same frame may be appended, and `Fenced` then does not say that it was not written.

        Raises:
            Fenced: not written, and never will be.
            EngineFull: not written, and this attempt never will be.
            OutcomeUnknown: see there.
            OtherHistory: the log ends elsewhere although this epoch is the current one.
        """

    def tail(self, after: int) -> AsyncGenerator[Frame | Leadership, None]:
        """Every frame after `after`, in order, without gap or repeat, and each change of leader.

        Frames and leaderships are in the order of their revisions: when a leadership is returned,
        every frame of an earlier epoch was returned before, and none follows. The present one comes
        once the frames before it were returned, also if there is no leader. Of changes that follow
        each other quickly only the last may be reported. Reconnecting is the engine's own concern:
        only an error ends the iterator.

        Raises:
            Trimmed: frame `after + 1` existed, and is gone.
            OtherHistory: the log ends before `after`, or is gone.
        """

    async def end(self) -> End:
        """The last frame of the log, linearizable: no append that had returned before is missed.

        Raises:
            OtherHistory: there is no log.
        """

    async def confirm(self, epoch: int) -> bool:
        """Whether this epoch is the current one, linearizable."""

    async def renew(self, lead: Lead) -> bool:
        """Extend the lease by its full duration; False when it has ended."""

    async def resign(self, lead: Lead) -> None:
        """End the own lease, and with it the epoch: another replica may lead at once."""

    async def revoke(self, lease: int) -> None:
        """End another replica's lease. Harmless if that replica is alive: it is fenced."""

    async def trim(self, below: int) -> None:
        """Remove all frames before `below`, except the last of the log."""

    async def room(self) -> Room:
        """Bytes in use, and the limit."""

    async def report(self, replica: int, document: bytes) -> None:
        """Store what a replica says of itself, in place of its previous report."""

    async def reports(self) -> dict[int, bytes]:
        """The last report of each replica."""

    async def forget(self, replica: int) -> None:
        """Remove the report of a replica that has been removed."""

    async def close(self) -> None:
        """End all connections. A lease that is held ends with its time; see `resign`."""
