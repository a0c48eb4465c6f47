"""The outcomes of a batch of writes: counted, and sent to their clients, with the texts kept right.

Nearly all answers are of a few forms, and go to connections that wait for nothing else: those are
made from the node's text in one step, in one loop over the batch. Others are told one by one, as
`kvd.keys` answers them, byte for byte in the same way.

Invariant: all outcomes are gone through, in their order, before any further request is served. So
no text is ever shown that is between two changes of a batch.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from itertools import repeat
from typing import TYPE_CHECKING

from kvd.commands import Set
from kvd.committer import tell_one
from kvd.errors import ApiError
from kvd.http1 import LARGE_BYTES, Connection, Server
from kvd.response import ACTIONS, FILE, PLAIN, escape, event_body, node_object
from kvd.shortway import END
from kvd.texts import TEXT_BYTES_MAX
from storage.change import REMOVALS, Kind

if TYPE_CHECKING:
    from kvd.committer import Answers, Done, Outcome, Tell
    from kvd.stats import StoreStats
    from kvd.texts import Texts
    from storage.change import Change
    from storage.event import Event
    from storage.flush import LateEvent
    from storage.node import Node
    from storage.state import State

log = logging.getLogger(__name__)

# As plain numbers: a lookup in the enumeration costs as much as a function call.
_OK, _CREATED = int(HTTPStatus.OK), int(HTTPStatus.CREATED)
_SET = Kind.SET

_ANSWER = b"%b%d%b%d\r\n\r\n%b"
_MADE = b'%b%d%b%d\r\n\r\n{"action":"%b","node":%b}\n'
_CHANGED = b'%b%d%b%d\r\n\r\n{"action":"%b","node":%b,"prevNode":%b}\n'
_SET_AGAIN = b'%b%d%b%d\r\n\r\n{"action":"set","node":%b,"prevNode":%b}\n'
# How long the bodies are without the texts and the action.
_MADE_BYTES = len(b'{"action":"","node":}\n')
_CHANGED_BYTES = len(b'{"action":"","node":,"prevNode":}\n')
_SET_BYTES = _CHANGED_BYTES + len(b"set")
# What is left of `FILE` when all that is plain is deleted, if key and value are plain.
_QUOTES = FILE.translate(None, PLAIN).replace(b"%b", b"")


class _NotAtOnce(Exception):
    """An answer is too large to be made in one step."""


class Telling:
    """Tells the outcomes of batches, to the connections of a server and to others.

    Attributes:
        tell: What the committer's `tell` is to be.
    """

    def __init__(
        self,
        server: Server,
        *,
        state: State,
        stats: StoreStats,
        texts: Texts,
        fixed_headers: bytes,
    ) -> None:
        self._server = server
        self._state = state
        self._stats = stats
        self._texts = texts
        self._fixed_headers = fixed_headers
        self.tell = self._telling()

    def _telling(self) -> Tell:  # noqa: C901, PLR0915 -- it is `tell`
        """Return `tell`: a function whose variables are bound once costs less than a method."""
        server, state, stats, texts = self._server, self._state, self._stats, self._texts
        kept, find_text = texts.kept, texts.kept.get
        durations = stats.durations
        sets = durations[Set]
        starts: object = None
        ok = created = b""

        def tell(answers: Answers, events: list[LateEvent], took: float) -> int:  # noqa: C901, PLR0912, PLR0915 -- see the module
            nonlocal starts, ok, created
            if starts is not server.starts:
                starts = server.starts
                ok, created = self._start(_OK), self._start(_CREATED)
            applied = state.applied
            end = END % (applied.pos, applied.term)
            late: list[tuple[Done, Outcome]] = []
            # Of the successes all but those that are counted otherwise are plain sets.
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
                try:
                    if value is None or expiration_ns or refresh or type(done) is not Connection:
                        others += 1
                        durations[type(command)].append(took)
                        before = kept.pop(key, None)
                        is_removed = is_removed or (is_dir and kind in REMOVALS)
                        is_made = prev is None and kind not in REMOVALS
                        start = created if is_made else ok
                        if type(done) is not Connection or not self._answer_other(
                            done, outcome, before, start, end
                        ):
                            late.append((done, outcome))
                        continue
                    text = FILE % (key, value, index, created_index)
                    if text.translate(None, PLAIN) != _QUOTES:
                        text = _escaped(change)
                    if prev is None:
                        size = len(text)
                        action = ACTIONS[kind]
                        length = size + len(action) + _MADE_BYTES
                        answer = _MADE % (created, index, end, length, action, text)
                        if kind != _SET:
                            others += 1
                            durations[type(command)].append(took)
                    elif kind == _SET:
                        before = find_text(key) or self._shown(key, prev, time_ns)
                        size = len(text) + len(before)
                        answer = _SET_AGAIN % (ok, index, end, size + _SET_BYTES, text, before)
                    else:
                        before = find_text(key) or self._shown(key, prev, time_ns)
                        size = len(text) + len(before)
                        action = ACTIONS[kind]
                        length = size + len(action) + _CHANGED_BYTES
                        answer = _CHANGED % (ok, index, end, length, action, text, before)
                        others += 1
                        durations[type(command)].append(took)
                    kept[key] = text
                    written += size
                    if not done.reply(answer):
                        late.append((done, outcome))
                except _NotAtOnce:
                    if kind != _SET:
                        others += 1
                        durations[type(command)].append(took)
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

    def _answer_other(
        self, connection: Connection, event: Event, before: bytes | None, start: bytes, end: bytes
    ) -> bool:
        """Answer with a success that leaves no text, if that can be done at once."""
        body = event_body(event, self._state.applied.clock_offset_ns, before)
        if body is None or len(body) > LARGE_BYTES:
            return False
        answer = _ANSWER % (start, event.change.index, end, len(body), body)
        return connection.reply(answer)

    def _shown(self, key: bytes, prev: Node, time_ns: int) -> bytes:
        """Return the JSON of a file as it was before."""
        if len(prev.value or b"") > TEXT_BYTES_MAX:
            raise _NotAtOnce
        text = node_object(escape(key), prev, time_ns, self._state.applied.clock_offset_ns)
        if len(text) > TEXT_BYTES_MAX:
            raise _NotAtOnce
        return text

    def _start(self, status: int) -> bytes:
        """Return what answers to writes begin with: up to the etcd index."""
        start = self._server.start(status, http10=False)
        return b"%b%bX-Etcd-Index: " % (start, self._fixed_headers)


def _escaped(change: Change) -> bytes:
    """Return the text of a file whose key or value does not stand for itself."""
    assert change.value is not None
    shown = escape(change.key), escape(change.value)
    text = FILE % (*shown, change.index, change.created_index)
    if len(text) > TEXT_BYTES_MAX:
        raise _NotAtOnce
    return text
