"""Whether this kernel has what the log is synced with where it can be: Linux AIO."""

import pytest

from kvd.storage.aio import DataSync


def kernel_can() -> bool:
    try:
        DataSync().close()
    except OSError:
        return False
    return True


needs_the_kernel = pytest.mark.skipif(not kernel_can(), reason="Linux AIO cannot be had here")
