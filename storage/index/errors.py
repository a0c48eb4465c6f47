"""Errors of LMDB by their consequence: the index is damaged, or it takes no change now."""

import lmdb

from kvd.storage.format.node import CorruptIndex

BROKEN = (
    CorruptIndex,
    lmdb.BadDbiError,
    lmdb.BadTxnError,
    lmdb.BadValsizeError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.KeyExistsError,
    lmdb.MapResizedError,
    lmdb.NotFoundError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.ProblemError,
    lmdb.VersionMismatchError,
)
"""What says that the index is damaged: nothing may be read from it, and it must be built again.

All that LMDB says of its own pages, and what it can say of our keys only if those are others than
we have written: none of them comes from a disk or a map that is full.
"""

MapFull = lmdb.MapFullError
"""The map is full, which says nothing about the disk."""

IndexRefused = lmdb.Error
"""The index cannot take a change (a full disk, a full map); the transaction is dead."""
