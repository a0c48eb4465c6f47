"""Cache of parsed header blocks, by their bytes: clients repeat themselves."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kvd.http.parsing.headers import Block, parse_block
from kvd.limits.bounded import Bounded

if TYPE_CHECKING:
    from collections.abc import Callable

_BLOCK_BYTES_MAX = 4096
_KEPT_BYTES_MAX = 16 << 20
# What a parsed block takes: its text four times (as it came, the same without its end, names and
# values, a field's name in normal form), and the objects. Measured: 97 KB for 546 fields, 1.7 KB
# for 6, without the second text; this is not less.
_TEXTS = 4
_BYTES_PER_FIELD = 256
# Blocks with a password are cached, too: parsing costs a quarter of a request. But no longer than
# this.
_SECRET_S = 60.0


Short = tuple[int, bool]
"""Length of the body of a request, and whether it is a form."""


class HeaderCache:
    """The header blocks of one server.

    Attributes:
        parsed: the cached blocks, by their bytes.
        short: of blocks whose requests may go the short way what that needs, by their bytes without
            the last CRLF.
    """

    def __init__(
        self,
        short_way: Callable[[Block], bool | None],
        short_bytes_max: int = _BLOCK_BYTES_MAX,
    ) -> None:
        """Make an empty cache.

        Args:
            short_way: returns whether the body of requests with a block is a form, or None if they
                may not go the short way; called once for each block.
            short_bytes_max: the longest block whose requests may go the short way.
        """
        self._blocks: Bounded[bytes, Block] = Bounded(_KEPT_BYTES_MAX)
        self.parsed = self._blocks.kept
        self.short: dict[bytes, Short] = {}
        self._short_way = short_way
        self._short_bytes_max = short_bytes_max
        self._secret: list[bytes] = []
        self._forget_s = -inf
        self._keeps = True

    def parse(self, raw: bytes) -> Block:
        """Return a header block, parsed now or before.

        Raises:
            httptools.HttpParserError: it is malformed, or its framing is ambiguous.
        """
        block = self.parsed.get(raw)
        if block is None:
            block = parse_block(raw)
            if len(raw) <= _BLOCK_BYTES_MAX and self._keeps:
                self._keep(raw, block)
        return block

    def tick(self, now: float) -> None:
        """Remove blocks with passwords after their time; `now` in seconds of any clock."""
        if now >= self._forget_s:
            self._forget_s = now + _SECRET_S
            for raw in self._secret:
                self._blocks.drop(raw)
                self.short.pop(_without_end(raw), None)
            self._secret.clear()

    def stop(self) -> None:
        """Remove all blocks, and cache no more."""
        self._keeps = False
        self._blocks.clear()
        self.short.clear()

    def _keep(self, raw: bytes, block: Block) -> None:
        size = _TEXTS * len(raw) + _BYTES_PER_FIELD * (raw.count(b"\n") + 1)
        self._blocks.keep(raw, block, size)
        if len(self.parsed) == 1:
            # Those before it have been dropped.
            self._secret.clear()
            self.short.clear()
        if "Authorization" in block.headers:
            self._secret.append(raw)
        if block.is_sized and len(raw) <= self._short_bytes_max:
            is_form = self._short_way(block)
            if is_form is not None:
                self.short[_without_end(raw)] = block.content_length, is_form


def _without_end(raw: bytes) -> bytes:
    return raw.removesuffix(b"\r\n")
