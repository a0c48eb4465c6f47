"""Responses to the commands of a batch, and the statistics of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from kvd.core.batch.round import Round, respond_to
from kvd.core.stats import StoreStats
from kvd.logs import SLOW_QUIET_S, RateLimit
from kvd.storage.format.event import Event
from kvd.v2.documents.decision import Reply
from kvd.v2.errors import ApiError

log = logging.getLogger(__name__)


class Responses:
    """Responds to commands, and counts.

    Attributes:
        aborted: How many batches were not logged, for want of room.
        slow: How many commands were answered late.
    """

    def __init__(self, stats: StoreStats) -> None:
        self._stats = stats
        self._warnings = RateLimit(SLOW_QUIET_S)
        self.aborted = 0
        self.slow = 0

    def respond(self, round_: Round, took: float) -> int:
        """Respond to the commands of a batch: a `Respond`."""
        stats = self._stats
        succeeded = 0
        for done, command, outcome in round_.answers:
            if type(outcome) is Event:
                succeeded += 1
                stats.durations[type(command)].append(took)
            else:
                assert isinstance(outcome, ApiError)
                stats.count(command, succeeded=False)
                stats.refused(command, outcome)
            respond_to(done, outcome)
        return len(round_.pending.events) - succeeded

    def abort(self, round_: Round, refusal: ApiError) -> None:
        """Respond to the commands of a batch that was not logged."""
        self.aborted += 1
        for _, command, _ in round_.answers:
            self._stats.refused(command, refusal)
        round_.answer_all(refusal)

    def note_slow(self, commands: int, took: float) -> None:
        """Count the commands of a batch that took long; log some of them."""
        self.slow += commands
        if self._warnings.allow():
            log.warning(
                "slow: %d writes took up to %.1f s%s",
                commands,
                took,
                self._warnings.suppressed(),
            )

    def reply(self, round_: Round, observers: Sequence[Callable[[], None]]) -> None:
        """Respond to changes of documents, after their observers if any was made."""
        if any(isinstance(reply, Reply) for _, reply in round_.replies):
            for observer in observers:
                observer()
        for replied, reply in round_.replies:
            respond_to(replied, reply)
