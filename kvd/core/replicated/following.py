"""The order in which batches of another member are applied, behind the closed gate."""

from __future__ import annotations

from collections.abc import Callable

from kvd.core.batch.flow import Flow
from kvd.core.batch.round import Ends
from kvd.core.disk_space import DiskSpace
from kvd.core.replicated.followed import Awaited
from kvd.storage.errors import OtherHistory
from kvd.storage.format.records import UnknownRecord


class Following:
    """Applies one batch of another member after the other."""

    def __init__(
        self,
        flow: Flow,
        space: DiskSpace,
        ends: Ends,
        claim: Callable[[], bool],
        *,
        on_abort: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        """`claim` takes the place of the next batch if none is under way, and returns whether."""
        self._flow = flow
        self._space = space
        self._ends = ends
        self._claim = claim
        self._on_abort = on_abort
        self._on_fatal = on_fatal
        self._is_stopped = False

    async def follow(self, payload: bytes, awaited: Awaited) -> bool:
        """Apply the payload of a batch that another member has logged, behind the closed gate.

        It waits for the end of a batch under way; one at a time. Watchers and observers get what
        they would get there; those that are `awaited` get responses, by the rids in the payload.
        Return whether it is durable and visible here. If not there was no room, to be tried again
        later, or the committer has stopped.

        Raises:
            OtherHistory, UnknownRecord: it does not go on from this state; nothing has changed.
        """
        while not self._claim():
            if self._is_stopped:
                return False
            await self._ends.next()
        end = self._ends.next()
        try:
            self._flow.follow(payload, awaited)
        except (OtherHistory, UnknownRecord):
            self._on_abort()
            raise
        except BaseException as error:
            self._on_fatal(error)
            raise
        is_applied = await end
        if is_applied:
            self._space.leave_with_room()
        return is_applied

    def stop(self) -> None:
        """Apply none any more."""
        self._is_stopped = True
