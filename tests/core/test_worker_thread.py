"""worker_thread.py: jobs that block run elsewhere, and their outcomes come back on the loop."""

import asyncio
import threading
from pathlib import Path

from kvd.core.worker_thread import WorkerThread


def on_a_loop(scenario):
    """Run a coroutine function with a thread of its own, which is stopped at its end."""

    async def run():
        thread = WorkerThread(asyncio.get_running_loop(), "test-sync")
        try:
            await asyncio.wait_for(scenario(thread), 30)
        finally:
            thread.stop()

    asyncio.run(run())


async def outcome_of(thread, job):
    future = asyncio.get_running_loop().create_future()
    thread.run(job, future.set_result)
    return await future


def test_a_result_and_an_error_come_back():
    async def scenario(thread):
        assert await outcome_of(thread, lambda: 7) == 7
        error = await outcome_of(thread, lambda: 1 // 0)
        assert isinstance(error, ZeroDivisionError)
        assert await outcome_of(thread, lambda: 8) == 8

    on_a_loop(scenario)


def test_jobs_run_elsewhere_and_are_answered_here():
    async def scenario(thread):
        here = threading.get_ident()
        answered = asyncio.get_running_loop().create_future()
        thread.run(
            threading.get_ident,
            lambda ident: answered.set_result((ident, threading.get_ident())),
        )
        there, back = await answered
        assert there != here == back

    on_a_loop(scenario)


def test_jobs_run_one_after_another_in_their_order():
    async def scenario(thread):
        done = []
        last = asyncio.get_running_loop().create_future()
        for number in range(100):
            thread.run(lambda number=number: number, done.append)
        thread.run(lambda: None, last.set_result)
        await last
        assert done == list(range(100))

    on_a_loop(scenario)


def test_the_loop_goes_on_while_a_job_blocks():
    async def scenario(thread):
        release = threading.Event()
        blocked = asyncio.ensure_future(outcome_of(thread, lambda: release.wait(30)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not blocked.done()
        release.set()
        assert await blocked is True

    on_a_loop(scenario)


def open_files():
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_a_stop_waits_for_what_was_given_and_delivers_it():
    before = open_files()

    async def scenario():
        done = []
        thread = WorkerThread(asyncio.get_running_loop(), "test-sync")
        for number in range(10):
            thread.run(lambda number=number: number, done.append)
        thread.stop()
        assert done == list(range(10))
        assert "test-sync" not in [thread.name for thread in threading.enumerate()]

    asyncio.run(scenario())
    assert open_files() == before


def test_it_says_when_it_has_nothing_to_do():
    async def scenario():
        loop = asyncio.get_running_loop()
        idle = threading.Event()
        thread = WorkerThread(loop, "test-sync", idle.set)
        assert not idle.is_set()
        assert await outcome_of(thread, lambda: 7) == 7
        assert await asyncio.to_thread(idle.wait, 30)
        thread.stop()

    asyncio.run(scenario())
