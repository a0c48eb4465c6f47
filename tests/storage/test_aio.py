"""storage/aio.py: a sync by the kernel, and a wait for it."""

import errno
import os
import select
import signal

import pytest

from kvd.storage import aio
from kvd.storage.aio import DataSync
from tests.support.held_sync import HeldSync
from tests.support.kernel_sync import needs_the_kernel
from tests.support.server import PATIENCE_S


@needs_the_kernel
def test_the_kernel_syncs_a_file_and_refuses_a_pipe(tmp_path):
    sync = DataSync()
    assert sync.outcome() is None
    with (tmp_path / "file").open("wb", buffering=0) as file:
        for _ in range(3):
            file.write(b"data")
            sync.submit(file.fileno())
            os.set_blocking(sync.fileno, True)
            os.eventfd_write(sync.fileno, os.eventfd_read(sync.fileno))  # waits for its end
            assert sync.outcome() == 0
            os.set_blocking(sync.fileno, False)
    source, target = os.pipe()
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        sync.submit(source)
    os.close(source)
    os.close(target)
    sync.close()


@needs_the_kernel
def test_a_wait_ends_by_the_sync_or_by_the_bound_and_signals_do_not_harm_it(tmp_path):
    sync = HeldSync()
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, aio.WAIT_S / 10, aio.WAIT_S / 10)
    with (tmp_path / "file").open("wb") as file:
        try:
            sync.submit(file.fileno())
            assert [sync.wait(briefly=n > 10) for n in range(20)] == [None] * 20
            sync.end()
            while (code := sync.wait()) is None:
                pass
            assert code == 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        sync.submit(file.fileno())
        assert sync.wait() is None
        assert sync.outcome() is None  # what is left of the first is taken off the eventfd
        sync.end()
        assert select.select([sync.fileno], [], [], PATIENCE_S)[0]
        assert sync.outcome() == 0
        assert sync.outcome() is None
    sync.close()
    assert aio.BRIEFLY_S <= aio.WAIT_S / 5 <= 0.0002
