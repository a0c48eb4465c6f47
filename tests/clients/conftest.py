"""Fixtures of the tests with clients."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.processes import Process


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Starts processes that are ended, however, at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(*command: Any, **options: Any) -> Process:
            process = Process(*command, **options)
            stack.callback(process.kill)
            return process

        yield start
