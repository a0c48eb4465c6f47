"""Each test of the client runs twice: with `Client`, and with `AsyncClient` that looks like it."""

import asyncio
import contextlib
import inspect
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvd.client import AsyncClient, Client


class Awaited:
    """An object of `kvd.client.asynchronous`, as if it were one of `kvd.client.blocking`."""

    def __init__(self, runner: asyncio.Runner, wrapped: Any) -> None:
        self._runner = runner
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            result = attribute(*args, **kwargs)
            if inspect.isawaitable(result):

                async def outcome() -> Any:
                    return await result

                return self._runner.run(outcome())
            return Awaited(self._runner, result) if hasattr(result, "__anext__") else result

        return call

    def __enter__(self) -> "Awaited":
        return self

    def __exit__(self, *_: object) -> None:
        self._wrapped.close()

    def __iter__(self) -> "Awaited":
        return self

    def __next__(self) -> Any:
        async def step() -> Any:
            return await self._wrapped.__anext__()

        try:
            return self._runner.run(step())
        except StopAsyncIteration:
            raise StopIteration from None


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients, which are closed at the end."""
    with contextlib.ExitStack() as stack:
        if request.param == "sync":
            yield lambda *args, **kwargs: stack.enter_context(Client(*args, **kwargs))
        else:
            runner = stack.enter_context(asyncio.Runner())

            def make(*args: Any, **kwargs: Any) -> Any:
                return stack.enter_context(Awaited(runner, AsyncClient(*args, **kwargs)))

            yield make


class Interrupted(BaseException):
    """What a signal raises, as KeyboardInterrupt."""


@pytest.fixture
def interrupt():
    """Returns a function for other threads that has the main one raise `Interrupted`."""

    def handle(*_: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR2, handle)
    yield lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, before)
