"""Cutting off a torn tail so that it could be put back: the bytes go to `quarantine/` first."""

import logging
from datetime import UTC, datetime
from pathlib import Path

from kvd.storage import disk
from kvd.storage.wal.segments import TornTail

log = logging.getLogger(__name__)


def cut_off(fd: int, torn: TornTail, quarantine: Path) -> None:
    """Copy a torn tail to the quarantine, overwrite it with zeros, and log one warning.

    Durable on return. On a full disk the copy is left out: the bytes were never acknowledged, and
    that is no reason to refuse the start.

    Args:
        fd: the segment, open to write.
        torn: where its torn tail is.
        quarantine: the directory for the copy, `<UTC>-<offset>-<segment>`.

    Raises:
        OSError: the disk failed.
    """
    now = datetime.fromtimestamp(disk.wall_clock_ns() // 10**9, UTC)
    copy = quarantine / f"{now:%Y%m%dT%H%M%SZ}-{torn.offset}-{torn.file.name}"
    outcome = f"kept in {copy.parent.name}/{copy.name}"
    try:
        disk.write_file_durably(copy, disk.read_at(fd, torn.length, torn.offset))
    except OSError as error:
        if error.errno not in disk.REFUSALS:
            raise
        outcome = f"not kept: {error.strerror}"
    disk.write_at(fd, bytes(torn.length), torn.offset)
    disk.sync_file(fd)
    log.warning(
        "%s/%s: offset %d: cut off %d bytes of a write that never finished (%s); "
        "last good: frame %d",
        torn.file.parent.name,
        torn.file.name,
        torn.offset,
        torn.length,
        outcome,
        torn.last_seq,
    )
