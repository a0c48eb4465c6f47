"""The journal: batches as frames of the log, in the order of the history.

A batch is decided here and encoded, or was decided by another member: then its payload is adopted,
byte for byte, so that equal chains mean equal histories.
"""

from __future__ import annotations

from kvd.storage.errors import OtherHistory
from kvd.storage.format.frame import Position
from kvd.storage.format.payload import Payload, decode_with_rids, encode_payload, next_chain
from kvd.storage.index.pending import Pending
from kvd.storage.processor import has_sha256
from kvd.storage.wal.wal import Wal


class Journal:
    """Writes batches to a log, in the name of a member."""

    def __init__(self, wal: Wal, *, writer: int) -> None:
        self._wal = wal
        self._writer = writer
        self._has_sha256 = has_sha256()

    def encode(self, pending: Pending, records: list[bytes], time_ns: int) -> None:
        """Note the payload of a batch, whose records are encoded already, and what follows from it.

        Its chain value is computed by the append, while the disk is busy.
        """
        base = pending.base
        pending.seq, pending.time_ns, pending.records = base.seq + 1, time_ns, len(records)
        pending.payload = payload = encode_payload(
            base.term,
            pending.seq,
            base.chain,
            pending.pos,
            base.index + 1,
            time_ns,
            self._writer,
            records,
            base.clock_offset_ns,
            self._has_sha256,
        )
        pending.size = len(payload)

    @staticmethod
    def adopt(pending: Pending, data: bytes) -> tuple[Payload, list[bytes | None]]:
        """Note the payload of another member's batch; return what is in it, to be applied.

        With it come the rids of its records.

        Raises:
            OtherHistory: it does not go on from the state below the batch.
            UnknownRecord: it holds what this version does not know.
        """
        (payload, rids), base = decode_with_rids(data), pending.base
        expected = base.seq + 1, base.chain, base.pos + len(payload.records), base.index + 1
        found = payload.seq, payload.prev_chain, payload.pos, payload.first_index
        if found != expected:
            raise OtherHistory(
                f"batch {payload.seq} of the log on chain {payload.prev_chain.hex()} at index "
                f"{payload.first_index}, expected {base.seq + 1} on {base.chain.hex()} at index "
                f"{base.index + 1}: it belongs to another history"
            )
        pending.seq, pending.time_ns, pending.records = (
            payload.seq,
            payload.time_ns,
            len(payload.records),
        )
        pending.payload, pending.size = data, len(data)
        return payload, rids

    def append(self, pending: Pending) -> Position:
        """Make a batch durable. A call for the sync thread; what does without one calls the log.

        Raises:
            LogFull: it was not written, and never will be.
            OSError: it is unknown whether it was written: the process must end.
        """
        base, payload = pending.base, pending.payload
        position = self._wal.append(
            payload, first_index=base.index + 1, count=pending.records, oversize=True
        )
        pending.chain = next_chain(base.chain, payload)
        return position
