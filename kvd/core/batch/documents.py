"""Documents (users, roles, members) in a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from kvd.core.batch.limits import BatchLimits
from kvd.core.batch.round import Round
from kvd.core.replicated.rids import Forwarded
from kvd.storage.format.records import Document, encode_record, with_rid
from kvd.v2.documents.decision import Decide, Replied
from kvd.v2.errors import RouteError


def decide_documents(
    round_: Round,
    queue: deque[tuple[Any, Replied]],
    size: int,
    limits: BatchLimits,
    decide: Decide,
) -> list[bytes]:
    """Decide queued changes of documents, as far as a batch of `size` bytes takes them.

    Returns the records.
    """
    records: list[bytes] = []
    replies: list[tuple[Callable[[Any], None], object]] = []
    round_.replies = replies
    # One of the largest size fits behind this.
    while queue and size < limits.bytes_max // 2:
        command, done = queue.popleft()
        try:
            documents, reply = decide(round_.pending, command)
            encoded = _encode(documents, size, limits)
            if isinstance(done, Forwarded):
                encoded = [with_rid(record, done.rid) for record in encoded]
        except RouteError as refusal:
            replies.append((done, refusal))
            continue
        replies.append((done, reply))
        records += encoded
        size += sum(map(len, encoded))
        for document in documents:
            round_.pending.apply(document, round_.time_ns)
    return records


def _encode(documents: list[Document], size: int, limits: BatchLimits) -> list[bytes]:
    """Return documents as records, which follow `size` bytes of others.

    Raises:
        RouteError: they are too large for the log, or there is no room.
    """
    encoded = [encode_record(document) for document in documents]
    added = sum(map(len, encoded))
    if added > limits.lone_bytes_max // 2:
        raise RouteError(413, "too large for the log")
    if any(document.content is not None for document in documents):
        no_room = limits.space.check(size + added)
        if no_room is not None:
            raise RouteError(500, no_room.cause.decode())
    return encoded
