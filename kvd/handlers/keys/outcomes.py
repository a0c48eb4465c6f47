"""Outcomes of a batch of writes: count them, answer their clients, keep the value cache right.

Nearly all responses are of a few forms, and of connections that wait for nothing else: those are
made from the node's text in one step, in one loop over the batch. Others are sent one by one, by
`kvd.handlers.keys.writes`, byte for byte the same.

Invariant: all outcomes of a batch are processed, in their order, before any further request is
served. So no read sees a text between two changes of a batch.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from itertools import repeat
from typing import TYPE_CHECKING

from kvd.core.batch.round import tell_one
from kvd.handlers.keys.responder import END
from kvd.handlers.keys.value_cache import TEXT_BYTES_MAX
from kvd.http.connection import Connection
from kvd.http.sending.status_lines import StatusLines
from kvd.json_text import PLAIN, escape
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS, Kind
from kvd.v2.commands import Set
from kvd.v2.errors import ApiError
from kvd.v2.response import ACTIONS, FILE, FILE_THAT_EXPIRES, changed_node, expiration, node_object

if TYPE_CHECKING:
    from kvd.core.batch.round import Answers, Done, Outcome, Tell
    from kvd.core.stats import StoreStats
    from kvd.handlers.keys.value_cache import ValueCache
    from kvd.storage.index.history import LateEvent
    from kvd.storage.index.state import State

log = logging.getLogger(__name__)

# As plain numbers: a lookup in the enumeration costs as much as a function call.
_OK, _CREATED = int(HTTPStatus.OK), int(HTTPStatus.CREATED)
_SET = Kind.SET
_new = tuple.__new__

# The answers by the kind of the change: their format, and how long the body is without the texts.
_MADE_BODY = b'{"action":"%b","node":%%b}\n'
_CHANGED_BODY = b'{"action":"%b","node":%%b,"prevNode":%%b}\n'


def _answers(body: bytes) -> dict[int, tuple[bytes, int]]:
    bodies = {kind: body % action for kind, action in ACTIONS.items()}
    return {
        kind: (b"%b%d%b%d\r\n\r\n" + body, len(body.replace(b"%b", b"")))
        for kind, body in bodies.items()
    }


_MADE, _CHANGED = _answers(_MADE_BODY), _answers(_CHANGED_BODY)
# What is left of `FILE` when all that is plain is deleted, if key and value are plain.
_QUOTES = FILE.translate(None, PLAIN)
_QUOTES_OF_ONE_THAT_EXPIRES = (FILE_THAT_EXPIRES % (b"", b"", expiration(1, 0, 0), 0, 0)).translate(
    None, PLAIN
)


class _NotAtOnce(Exception):
    """An answer is too large to be made in one step."""


class Telling:
    """Reports the outcomes of batches, to the connections of a server and to other writers.

    Attributes:
        tell: The committer's `tell`.
    """

    def __init__(
        self,
        status_lines: StatusLines,
        *,
        state: State,
        stats: StoreStats,
        texts: ValueCache,
        fixed_headers: bytes,
    ) -> None:
        self._status_lines = status_lines
        self._state = state
        self._stats = stats
        self._texts = texts
        self._fixed_headers = fixed_headers
        self.tell = self._telling()

    def _telling(self) -> Tell:  # noqa: C901, PLR0915 -- it is `tell`
        """Return `tell`: a function whose variables are bound once costs less than a method."""
        lines, state, stats, texts = self._status_lines, self._state, self._stats, self._texts
        kept, forget_text = texts.kept, texts.kept.pop
        durations = stats.durations
        sets = durations[Set]
        made: object = None
        ok = created = b""

        def tell(answers: Answers, events: list[LateEvent], took: float) -> int:  # noqa: C901, PLR0912, PLR0915 -- see the module
            nonlocal made, ok, created
            if made is not lines.made:
                made = lines.made
                ok, created = self._start(_OK), self._start(_CREATED)
            applied = state.applied
            offset_ns = applied.clock_offset_ns
            end = END % (applied.pos, applied.term)
            late: list[tuple[Done, Outcome]] = []
            # Of the successes all but those that are counted otherwise are sets.
            others = refused = written = 0
            is_removed = False
            for done, command, outcome in answers:
                if isinstance(outcome, ApiError):
                    refused += 1
                    stats.count(command, succeeded=False)
                    stats.refused(command, outcome)
                    late.append((done, outcome))
                    continue
                change, prev, time_ns = outcome
                kind, index, key, value, is_dir, created_index, expiration_ns, refresh = change
                if kind != _SET:
                    others += 1
                    durations[type(command)].append(took)
                    is_removed = is_removed or (is_dir and kind in REMOVALS)
                before = forget_text(key, None)
                if type(done) is not Connection:
                    late.append((done, outcome))
                    continue
                try:
                    if value is None:
                        text = changed_node(change, time_ns, offset_ns)
                    elif expiration_ns or refresh:
                        node = _new(Node, (value, created_index, index, expiration_ns, 0))
                        text = _text(key, node, time_ns, offset_ns)
                    else:
                        text = FILE % (key, value, index, created_index)
                        if text.translate(None, PLAIN) != _QUOTES:
                            text = _text(key, Node(value, created_index, index), 0, 0)
                        kept[key] = text
                        written += len(text)
                    if prev is None:
                        answer, size = _MADE[kind]
                        answer %= created, index, end, size + len(text), text
                    else:
                        if before is None:
                            before = _text(key, prev, time_ns, offset_ns)
                        answer, size = _CHANGED[kind]
                        size += len(text) + len(before)
                        answer %= ok, index, end, size, text, before
                    if not done.reply(answer):
                        late.append((done, outcome))
                except _NotAtOnce:
                    kept.pop(key, None)
                    late.append((done, outcome))
                except Exception:
                    log.exception("an answer could not be given")
                    kept.clear()
            succeeded = len(answers) - refused
            sets.extend(repeat(took, succeeded - others))
            if written:
                texts.wrote(written)
            # Whatever was not asked for has expired.
            if is_removed or len(events) > succeeded:
                texts.forget_changed(events)
            for done, outcome in late:
                tell_one(done, outcome)
            return succeeded

        return tell

    def _start(self, status: int) -> bytes:
        """Return what answers to writes begin with: up to the etcd index."""
        start = self._status_lines.start(status, http10=False)
        return b"%b%bX-Etcd-Index: " % (start, self._fixed_headers)


def _text(key: bytes, node: Node, time_ns: int, offset_ns: int) -> bytes:
    """Return the JSON of a node, unless it is large."""
    value, created_index, index, expiration_ns, _ = node
    if value is not None:
        if len(value) > TEXT_BYTES_MAX:
            raise _NotAtOnce
        if expiration_ns:
            ends = expiration(expiration_ns, time_ns, offset_ns)
            text = FILE_THAT_EXPIRES % (key, value, ends, index, created_index)
            if text.translate(None, PLAIN) == _QUOTES_OF_ONE_THAT_EXPIRES:
                return text
    text = node_object(escape(key), node, time_ns, offset_ns)
    if len(text) > TEXT_BYTES_MAX:
        raise _NotAtOnce
    return text
