"""The refreshes of a lease while a program holds it, in a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvd.client.recipes.lease import Lease

if TYPE_CHECKING:
    from kvd.client.loop import AsyncDriver


class AsyncKeeper:
    """Refreshes a lease in a task, and cancels what needs it once it is lost.

    Attributes:
        lost: set once it is lost.
        is_held: whether `on_lost` is to be called then.
        body: the task that is to be cancelled then.
    """

    def __init__(
        self, driver: AsyncDriver, lease: Lease, on_lost: Callable[[], object] | None
    ) -> None:
        self.lost = asyncio.Event()
        self.is_held = False
        self.body: asyncio.Task[object] | None = None
        self._driver = driver
        self._lease = lease
        self._on_lost = on_lost
        self._has_cancelled = False
        self._task = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        wait_s = self._lease.refresh_s
        while True:
            await asyncio.sleep(wait_s)
            try:
                wait_s = await self._driver.run(self._lease.refresh())
            except Exception:  # noqa: BLE001 -- whatever it was, nothing refreshes the key now
                break
        self.lost.set()
        if self.body is not None:
            self._has_cancelled = self.body.cancel()
        if self.is_held and self._on_lost is not None:
            self._on_lost()

    def take_back(self, error: BaseException | type[BaseException] | None) -> bool:
        """Undo the cancellation of a body that has ended with an error, or without one.

        Returns:
            Whether the loss is all that has cancelled it: another cancellation goes on.
        """
        body, self.body = self.body, None
        if body is None or not self._has_cancelled:
            return False
        kind = error if isinstance(error, type) else type(error)
        return body.uncancel() == 0 and issubclass(kind, asyncio.CancelledError)

    async def stop(self) -> None:
        """Refresh it no more."""
        self.body = None
        self._task.cancel()
        # To await the task itself would take a cancellation of the caller for the task's.
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            context = {"message": "on_lost has failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)
