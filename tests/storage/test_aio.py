"""storage/aio.py and storage/wal/ring_sync.py: a sync by the kernel, and a wait for it."""

import errno
import os
import select
import signal

from kvd.storage import aio
from kvd.storage.aio import DataSync
from kvd.storage.wal import ring_sync
from kvd.storage.wal.ring_sync import RingSync, data_sync
from tests.support.held_sync import HeldSync
from tests.support.kernel_sync import BY_EITHER, needs_rings, needs_the_kernel
from tests.support.server import PATIENCE_S


@BY_EITHER
def test_the_kernel_syncs_files(tmp_path, kind):
    sync = kind()
    assert sync.outcome() is None
    for name in ("one", "other"):
        with (tmp_path / name).open("wb", buffering=0) as file:
            for _ in range(3):
                file.write(b"data")
                sync.submit(file.fileno())
                os.set_blocking(sync.fileno, True)
                os.eventfd_write(sync.fileno, os.eventfd_read(sync.fileno))  # waits for its end
                assert sync.outcome() == 0
                os.set_blocking(sync.fileno, False)
                assert sync.outcome() is None
    sync.close()


@BY_EITHER
def test_what_cannot_be_synced_is_refused_or_fails(tmp_path, kind):
    sync = kind()
    source, target = os.pipe()
    code = None
    try:
        sync.submit(source)
        while code is None:
            code = sync.wait()
    except OSError as error:
        code = error.errno
    assert code == errno.EINVAL
    with (tmp_path / "file").open("wb") as file:
        sync.submit(file.fileno())
        while (code := sync.wait()) is None:
            pass
        assert code == 0
    os.close(source)
    os.close(target)
    sync.close()


@BY_EITHER
def test_a_wait_for_nothing_ends_by_the_bound(kind):
    sync = kind()
    assert [sync.wait(briefly=True), sync.wait()] == [None, None]
    sync.close()


@BY_EITHER
def test_what_has_ended_is_found_without_being_waited_for(tmp_path, kind):
    sync = kind()
    with (tmp_path / "file").open("wb") as file:
        for _ in range(10):
            sync.submit(file.fileno())
            assert select.select([sync.fileno], [], [], PATIENCE_S)[0]
            assert sync.wait() == 0
            sync.clear()
    sync.close()


@needs_rings
def test_files_are_synced_by_rings_and_without_them_by_aio(monkeypatch):
    sync = data_sync()
    assert isinstance(sync, RingSync)
    sync.close()

    def forbidden():
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(ring_sync, "RingSync", forbidden)
    sync = data_sync()
    assert isinstance(sync, DataSync)
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
