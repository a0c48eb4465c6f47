"""A check for Linux AIO, by which the log is synced if the kernel has it."""

import pytest

from kvd.storage.aio import DataSync


def kernel_can() -> bool:
    try:
        DataSync().close()
    except OSError:
        return False
    return True


needs_the_kernel = pytest.mark.skipif(not kernel_can(), reason="Linux AIO cannot be had here")
