"""Zeros behind a short frame, where the file was only reserved so far.

On ext4 the first sync of a reserved block also commits the journal, which takes as long as the sync
itself: 190 us instead of 125 for frames of 2.5 KB, 240 instead of 135 for 10 KB (measured). So the
zeros for the frames that will follow are written along.
"""

_BLANK_BYTES = 256 << 10
_BLANK = bytes(_BLANK_BYTES)
# A frame that is longer needs new blocks of its own nearly each time.
_BLANKED_FRAME_BYTES_MAX = 64 << 10


def with_zeros(data: bytes, end: int, capacity: int) -> tuple[bytes, int]:
    """Return a frame that ends there with zeros behind it, and where these end."""
    if len(data) > _BLANKED_FRAME_BYTES_MAX:
        return data, end
    blank_end = min(end + _BLANK_BYTES, capacity)
    return data + _BLANK[: blank_end - end], blank_end
