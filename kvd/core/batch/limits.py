"""Limits of one batch: records, bytes, and the room that the log has for it."""

from __future__ import annotations

from kvd.core.batch.round import REMOVING
from kvd.core.disk_space import DiskSpace
from kvd.v2.commands import Command
from kvd.v2.errors import INVALID_FORM, ApiError

BATCH_RECORDS_MAX = 1000
BATCH_BYTES_MAX = 4 << 20
"""A command that is larger gets a batch of its own."""
# What a payload holds besides its records: the envelope and the heads of two arrays.
_ENVELOPE_BYTES_MAX = 128
EXPIRY_BYTES_MAX = 40
"""What the record of an expiration holds besides the path."""


class NoRoom(Exception):
    """A record fits nowhere, or there is no room on the disk: no refusal by the state."""

    def __init__(self, refusal: ApiError) -> None:
        super().__init__()
        self.refusal = refusal


class BatchLimits:
    """The limits of the batches of one log.

    Attributes:
        space: The room on the disk.
        bytes_max: The bytes of the records of a batch.
        lone_bytes_max: Those of a transaction that has a batch of its own; documents get half.
        record_bytes_max: The bytes of a record that has a batch of its own.
    """

    def __init__(self, payload_bytes_max: int, space: DiskSpace) -> None:
        self.space = space
        self.record_bytes_max = payload_bytes_max - _ENVELOPE_BYTES_MAX
        self.bytes_max = self.lone_bytes_max = min(BATCH_BYTES_MAX, self.record_bytes_max)

    def fits(
        self, command: Command, record: bytes, size: int, replaced: int, *, is_first: bool
    ) -> bool:
        """Return whether a record fits behind a batch of `size` bytes, which replaces others.

        Raises:
            NoRoom: it fits nowhere, or there is no room on the disk.
        """
        if size + replaced >= self.bytes_max:
            return False
        if not isinstance(command, REMOVING):
            if len(record) > self.record_bytes_max:  # a limit of small segments only
                raise NoRoom(ApiError(INVALID_FORM, b"http: POST too large"))
            no_room = self.space.check(size + len(record))
            if no_room is not None:
                raise NoRoom(no_room)
        grown = size + len(record)
        # A removal is never too large, or what was written under larger segments would stay.
        return grown <= self.bytes_max or not size or (is_first and grown <= self.record_bytes_max)

    def is_full(self, records: list[bytes], size: int) -> bool:
        """Return whether a batch of `size` bytes has no room for another expiration."""
        is_long = bool(records) and size + EXPIRY_BYTES_MAX > self.bytes_max
        return is_long or len(records) >= BATCH_RECORDS_MAX
