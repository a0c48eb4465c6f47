"""Fixtures of the tests of turns."""

import asyncio

import pytest

from tests.support.turned import LOOPS, Running, new_loop


@pytest.fixture(params=LOOPS)
def running(request):
    loop = new_loop(request.param)
    running = Running(loop)
    yield running
    running.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
