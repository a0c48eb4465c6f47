"""The changes of one batch, and its payload in the log.

`Pending` fills it while commands are decided, the log makes it durable, `State.merge` visible.
"""

from __future__ import annotations

from kvd.storage.format.applied import Applied
from kvd.storage.format.node import Node
from kvd.storage.format.records import Document
from kvd.storage.index.history import LateEvent


class Batch:
    """The changes of one batch.

    Attributes:
        nodes: The nodes that it changed, by their keys; None for a removed one.
        events: Its events, each with the record of its change where that is at hand.
        due_ns: As in `State`; the committer sets it after expiring all that was due.
        replaced: The bytes of the large values that its events replaced, which they hold.
        is_plain: Whether it changed nothing but nodes: then the fields below are empty.
        directories: The `parent_prefix` of the directories that it made, or met, by their paths.
        paths, dropped, changed_documents, new_bytes_max: As in `State`.
        base: What `Applied` will say once it is merged, but for what each batch changes.
        index, pos: As in `Applied`, once it is merged.
        seq, time_ns, chain: As in `Applied`, known once it is encoded.
        payload, records, size: What it is in the log: of how many records and bytes.
    """

    nodes: dict[bytes, Node | None]
    events: list[LateEvent]
    due_ns: int
    base: Applied
    index: int
    pos: int
    # What is rare stays here, in the class, until it comes; the dicts are never changed here.
    directories: dict[bytes, bytes] = {}  # noqa: RUF012
    paths: dict[bytes, bytes] = {}  # noqa: RUF012
    changed_documents: dict[bytes, Document] = {}  # noqa: RUF012
    dropped: tuple[int, ...] = ()
    new_bytes_max: int | None = None
    replaced = 0
    is_plain = True
    # Until it is encoded.
    seq = time_ns = records = size = 0
    chain = payload = b""
