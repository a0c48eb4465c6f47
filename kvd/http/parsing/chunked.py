"""Chunked bodies (RFC 9112 section 7.1)."""

from __future__ import annotations

import re

_CHUNK_LINE_BYTES_MAX = 4096
# How much is read before other connections have their turn: a chunk is three steps, about 2 us.
_STEPS_MAX = 192
# Text as RFC 9110 section 5.5 has it: no control characters but tabs.
_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;%b)?" % _TEXT)
_TRAILER = re.compile(rb"[!#$%%&'*+\-.^_`|~0-9A-Za-z]+:%b" % _TEXT)


class Chunks:
    """A chunked body; extensions and trailers are checked and dropped."""

    def __init__(self) -> None:
        self.complete = False
        self.has_more = False
        """The rest of the data was not parsed."""
        self._left = 0
        self._state = self._size
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the content in `data`, and the bytes that were not used or are behind the body.

        Of many small chunks only some are read at once: then `has_more` is true.

        Raises:
            ValueError: it is malformed.
        """
        content: list[bytes] = []
        position = 0
        steps = _STEPS_MAX
        while not self.complete and steps:
            following = self._state(data, position, content)
            if following == position:
                break
            position = following
            steps -= 1
        self.has_more = not steps and not self.complete
        return b"".join(content), data[position:]

    def _size(self, data: bytes, position: int, content: list[bytes]) -> int:
        end = self._line_end(data, position)
        if end < 0:
            return position
        match = _CHUNK_SIZE.fullmatch(data, position, end)
        if match is None:
            raise ValueError("a chunk without a size")
        self._left = int(match[1], 16)
        self._state = self._content if self._left else self._trailer
        return end + 2

    def _content(self, data: bytes, position: int, content: list[bytes]) -> int:
        if self._left:
            piece = data[position : position + self._left]
            if piece:
                content.append(piece)
            self._left -= len(piece)
            return position + len(piece)
        if len(data) - position < 2:
            return position
        if data[position : position + 2] != b"\r\n":
            raise ValueError("a chunk longer than its size")
        self._state = self._size
        return position + 2

    def _trailer(self, data: bytes, position: int, content: list[bytes]) -> int:
        end = self._line_end(data, position)
        if end < 0:
            return position
        self.complete = end == position
        if not self.complete and _TRAILER.fullmatch(data, position, end) is None:
            raise ValueError("a trailer that is no field")
        self._trailer_bytes += end - position
        if self._trailer_bytes > _CHUNK_LINE_BYTES_MAX:
            raise ValueError("trailers without an end")
        return end + 2

    def _line_end(self, data: bytes, position: int) -> int:
        end = data.find(b"\r\n", position, position + _CHUNK_LINE_BYTES_MAX)
        if end < 0 and len(data) - position >= _CHUNK_LINE_BYTES_MAX:
            raise ValueError("a line without an end")
        return end
