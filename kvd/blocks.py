"""Header blocks that were parsed lately, by their bytes: clients repeat themselves."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from kvd.bounded import Bounded
from kvd.framing import Block, parse_block

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornado import httputil

_BLOCK_BYTES_MAX = 4096
_KEPT_BYTES_MAX = 16 << 20
# What a parsed block takes: its text three times (as it came, names and values, a field's name in
# normal form), and the objects. Measured: 97 KB for 546 fields, 1.7 KB for 6; this is not less.
_TEXTS = 3
_BYTES_PER_FIELD = 256
# Blocks that hold a password are kept, too, or whoever sends one would pay for the parsing each
# time (a quarter of a request), but no longer than this.
_SECRET_S = 60.0


class Blocks:
    """The blocks of one server.

    Attributes:
        parsed: those that are kept, by their bytes.
    """

    def __init__(self, is_usual: Callable[[httputil.HTTPHeaders], bool]) -> None:
        """Blocks whose headers are not `is_usual` are never sized; it is asked once for each."""
        self._blocks: Bounded[bytes, Block] = Bounded(_KEPT_BYTES_MAX)
        self.parsed = self._blocks.kept
        self._is_usual = is_usual
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
            if not self._is_usual(block.headers):
                block = block._replace(is_sized=False)
            if len(raw) <= _BLOCK_BYTES_MAX and self._keeps:
                self._keep(raw, block)
        return block

    def tick(self, now: float) -> None:
        """Forget the passwords that have been kept for long; `now` in seconds of any clock."""
        if now >= self._forget_s:
            self._forget_s = now + _SECRET_S
            for raw in self._secret:
                self._blocks.drop(raw)
            self._secret.clear()

    def stop(self) -> None:
        """Keep none from now on."""
        self._keeps = False
        self._blocks.clear()

    def _keep(self, raw: bytes, block: Block) -> None:
        size = _TEXTS * len(raw) + _BYTES_PER_FIELD * (raw.count(b"\n") + 1)
        self._blocks.keep(raw, block, size)
        if len(self.parsed) == 1:
            # Those before it have been dropped.
            self._secret.clear()
        if "Authorization" in block.headers:
            self._secret.append(raw)
