"""Waiting for what cannot be awaited as an event: a state of a server, or of objects on a loop."""

import asyncio
import time
from collections.abc import Callable

from tests.support.server import PATIENCE_S

_POLL_S = 0.005


def wait_until(holds: Callable[[], object], *, limit_s: float = PATIENCE_S) -> float:
    """Poll until a condition holds; return how long that took, in seconds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < limit_s, "it does not come true"
        time.sleep(_POLL_S)
    return time.monotonic() - began


async def until(holds: Callable[[], object]) -> None:
    """Let the loop go on until a condition holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.001)
