"""Reading a file of frames in order, through a window of bounded size.

A file is synced and its cached pages are dropped before the first byte is read, so that what is
read is what is on the disk (storage/disk.py, assumption 4).
"""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from kvd.storage import disk
from kvd.storage.format import frame
from kvd.storage.format.frame import PAGE_SIZE, FrameState, Parsed

WINDOW_BYTES = 1024 * 1024
_SHORT, _INTACT = FrameState.SHORT, FrameState.INTACT
_ZEROS = bytes(WINDOW_BYTES)


class FrameReader:
    """One file of frames, open for reading; a context manager.

    Attributes:
        header: the file's first page.
        size: the file's length in bytes.
        offset: where the next frame starts; past a frame only after it was found intact.
    """

    def __init__(self, path: Path, *, magic: bytes) -> None:
        """Open a file and read its first page.

        Raises:
            ValueError: the first page is not good.
            OSError: the file cannot be read.
        """
        self._fd = disk.open_to_read(path)
        try:
            disk.sync_file(self._fd)
            disk.drop_cache(self._fd)
            self.size = os.fstat(self._fd).st_size
            self.header = frame.decode_segment_header(
                disk.read_at(self._fd, PAGE_SIZE, 0), magic=magic
            )
        except BaseException:
            os.close(self._fd)
            raise
        self._salt = self.header.salt
        self.offset = PAGE_SIZE
        self._window = b""
        self._window_start = PAGE_SIZE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def next(self) -> Parsed:
        """Parse the bytes at `offset`, and advance past them if they are an intact frame.

        Never returns SHORT: a frame that the file does not hold completely is BAD, and END says
        that zeros stand there or the file ends (what comes after them is not looked at).
        """
        parsed = frame.parse(self._window, self.offset - self._window_start, self._salt)
        if parsed.state is _SHORT:
            parsed = self._parse_further(parsed.size)
        if parsed.state is _INTACT:
            self.offset += parsed.size
        return parsed

    def skip_to(self, offset: int) -> None:
        """Go on at `offset`, where a frame starts."""
        self.offset = offset

    def before(self, length: int) -> bytes:
        """Return the `length` bytes before `offset`."""
        return disk.read_at(self._fd, length, self.offset - length)

    def rest(self) -> bytes:
        """Return all from `offset` to the end of the file, or nothing where that is all zeros."""
        at = self.offset
        while chunk := disk.read_at(self._fd, WINDOW_BYTES, at):
            if chunk != _ZEROS[: len(chunk)]:
                return disk.read_at(self._fd, self.size - self.offset, self.offset)
            at += len(chunk)
        return b""

    def _parse_further(self, needed: int) -> Parsed:
        """Parse again with more of the file in the window."""
        left = self.size - self.offset
        while needed <= left:
            self._window = disk.read_at(self._fd, max(WINDOW_BYTES, needed), self.offset)
            self._window_start = self.offset
            parsed = frame.parse(self._window, 0, self._salt)
            if parsed.state is not FrameState.SHORT:
                return parsed
            if len(self._window) < needed:  # the file got shorter under us
                break
            needed = parsed.size
        tail = disk.read_at(self._fd, min(left, frame.HEADER_SIZE), self.offset)
        if tail == _ZEROS[: len(tail)]:
            return Parsed(FrameState.END, 0)
        return Parsed(
            FrameState.BAD, 0, reason=f"needs {needed} bytes, but the file has {left} more"
        )
