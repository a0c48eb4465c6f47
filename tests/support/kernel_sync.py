"""Checks for what syncs the log, where the kernel has it."""

import pytest

from kvd.storage.aio import DataSync
from kvd.storage.wal.ring_sync import RingSync


def can_be_had(kind: type) -> bool:
    try:
        kind().close()
    except OSError:
        return False
    return True


needs_the_kernel = pytest.mark.skipif(
    not can_be_had(DataSync), reason="Linux AIO cannot be had here"
)
needs_rings = pytest.mark.skipif(not can_be_had(RingSync), reason="io_uring cannot be had here")
BY_EITHER = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(DataSync, marks=needs_the_kernel, id="aio"),
        pytest.param(RingSync, marks=needs_rings, id="rings"),
    ],
)
