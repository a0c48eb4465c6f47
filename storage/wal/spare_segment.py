"""The space of the log's next segment, reserved ahead of time in `next.tmp`.

A full disk is met when space is reserved, not when a frame is written: that is before anything has
happened. The file is no part of the log until it gets a header and a segment's name.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvd.storage import disk
from kvd.storage.errors import LogFull
from kvd.storage.failpoints import Faults
from kvd.storage.format.names import SPARE_NAME

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(_CHUNK_BYTES)


@contextmanager
def refusals_as_log_full(path: Path) -> Iterator[None]:
    """Raise `LogFull` where the system refuses to write; let any other error pass.

    Not for syncs: a sync that fails, for whatever reason, leaves an unknown state.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in disk.REFUSALS:
            raise
        raise log_full(error, path) from error


def log_full(error: OSError, path: Path) -> LogFull:
    """Return a refusal by the system as `LogFull`."""
    assert error.errno is not None
    return LogFull(error.errno, f"{path.parent.name}/{path.name}: {error.strerror}")


def first_byte(directory: Path) -> int | None:
    """Return the offset of the first byte of a spare segment that is not zero, or None.

    Raises:
        OSError: it cannot be read.
    """
    try:
        fd = disk.open_to_read(directory / SPARE_NAME)
    except FileNotFoundError:
        return None
    try:
        for offset, data in _written(fd):
            return offset + len(data) - len(data.lstrip(b"\0"))
    finally:
        os.close(fd)
    return None


def _written(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield the chunks of a file in which not all is zero, each with its offset.

    What was reserved and never written is passed over without being read, where the file system
    knows.
    """
    end = 0
    while (offset := disk.next_data(fd, end)) is not None:
        data = disk.read_at(fd, _CHUNK_BYTES, offset)
        end = offset + len(data)
        if data != _ZEROS[: len(data)]:
            yield offset, data


class Spare:
    """`next.tmp` of one log.

    Attributes:
        size: how many bytes it reserves, unless a longer frame needs more.
        reserved: how many it has reserved.
        fd: the open file once they are reserved, else None.
    """

    def __init__(self, directory: Path, size: int, faults: Faults) -> None:
        self._faults = faults
        self._path = directory / SPARE_NAME
        self.size = self.reserved = size
        self.fd: int | None = None

    def adopt(self) -> None:
        """Keep what an earlier run reserved: on a full disk it is all there is.

        Nothing may stand in it, or that would be behind the frames of the next segment. A crash may
        have left a header there; whatever it is, it is overwritten, since there may be no room for
        another file. Durable when it becomes a segment.
        """
        with suppress(FileNotFoundError):
            if self.fd is None and self._path.stat().st_size == self.size:
                self.fd = disk.open_to_write(self._path)
                self._clear(self.fd)

    def _clear(self, fd: int) -> None:
        try:
            for offset, data in _written(fd):
                disk.write_at(fd, bytes(len(data)), offset)
                log.info("%s: cleared %d bytes at %d", self._path, len(data), offset)
        except OSError as error:
            if error.errno not in disk.REFUSALS:
                raise
            self.close()  # another one is reserved when there is room

    def reserve(self, size: int = 0) -> int:
        """Reserve the space, `size` bytes or more, unless that is done; return the open file.

        Raises:
            LogFull: there is no room.
        """
        size = max(size, self.size)
        if self.fd is not None and self.reserved >= size:
            return self.fd
        self.close()
        with refusals_as_log_full(self._path):
            self._faults.reach("segmentBeforeReserve")
            disk.remove_if_there(self._path)
            fd = disk.create(self._path)
            disk.write_in_place(self._path)
            try:
                disk.preallocate(fd, size)
            except BaseException:
                os.close(fd)
                disk.remove_if_there(self._path)
                raise
        self._faults.reach("segmentAfterReserve")
        self.fd, self.reserved = fd, size
        return fd

    def install(self, path: Path, page: bytes) -> int:
        """Turn the reserved file into a segment; durable on return.

        Args:
            path: the segment's name, in the same directory.
            page: its first page.

        What is reserved already is taken, whatever its size.

        Returns:
            The open file, which is now the caller's to close.

        Raises:
            LogFull: there is no room; nothing has happened.
        """
        fd = self.reserve() if self.fd is None else self.fd
        with refusals_as_log_full(self._path):
            self._faults.reach_write("segmentBeforeHeader", fd, page, 0)
            disk.write_at(fd, page, 0)
        disk.sync_file(fd)
        with refusals_as_log_full(self._path):
            self._faults.reach("segmentBeforeRename")
            disk.rename(self._path, path)
        self.fd = None
        try:
            self._faults.reach("segmentAfterRename")
            disk.sync_directory(path.parent)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Let go of the file; what it reserves stays reserved."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
