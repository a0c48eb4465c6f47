"""An event loop whose time passes only while nothing else is to be done, and then at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    """Ready files as ever; without one, the next timer is due."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait, and nothing is to come"
            self.passed_s += timeout
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Begins at 0 s. Tasks run in the same order in each run with the same inputs."""

    def __init__(self) -> None:
        self._simulated = _Selector()
        super().__init__(self._simulated)

    def time(self) -> float:
        return self._simulated.passed_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, in simulated time."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)
