"""Outcomes of a batch of writes: count them, answer their clients, keep the value cache right.

Nearly all responses are of a few forms, and of connections that wait for nothing else: those are
rendered from the node's text in one step, in one loop over the batch, while the disk is at work.
Others are made and sent one by one, by `kvd.handlers.keys.writes`, byte for byte the same.

Invariants:

- Rendering changes nothing that anyone sees: reads are served before the batch is durable.
- All outcomes of a batch are processed, in their order, before any further request is served. So no
  read sees a text between two changes of a batch.
- The responses that are held while the disk is at work are bounded, and those to a large batch are
  counted in the memory budget; those for which there is no room are made and sent one by one.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

from kvd.core.batch.round import respond_to
from kvd.handlers.keys.responder import END
from kvd.handlers.keys.value_cache import TEXT_BYTES_MAX
from kvd.http.connection import Connection
from kvd.http.sending.status_lines import StatusLines
from kvd.json_text import PLAIN, escape
from kvd.storage.format.node import Node
from kvd.storage.format.records import REMOVALS, Change, Kind
from kvd.v2.commands import Command, Set
from kvd.v2.errors import ApiError
from kvd.v2.response import (
    ACTIONS,
    FILE,
    FILE_THAT_EXPIRES,
    REMOVED_FILE,
    changed_node,
    expiration,
    node_object,
)

if TYPE_CHECKING:
    from kvd.core.batch.round import Done, Outcome, Render, Respond, Round
    from kvd.core.stats import StoreStats
    from kvd.handlers.keys.value_cache import ValueCache
    from kvd.limits.memory_budget import MemoryBudget

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
# What is left of a text when all that is plain is deleted, if key and value are plain.
_QUOTES = FILE.translate(None, PLAIN)
_QUOTES_OF_ONE_THAT_EXPIRES = (FILE_THAT_EXPIRES % (b"", b"", expiration(1, 0, 0), 0, 0)).translate(
    None, PLAIN
)
_QUOTES_OF_A_REMOVED_ONE = REMOVED_FILE.translate(None, PLAIN)
# Stands for a text that is not kept.
_FORGOTTEN = b""

AT_ONCE_BYTES_MAX = 8 << 20
"""The responses of a batch that are prepared, give or take one. Written once, a value is in two of
them, and escaped it takes six times its bytes: those of a batch of 4 MiB would take 50 MB."""
# Without escapes a batch of so many bytes, replaced ones included, makes responses of a few
# megabytes, however many: they are not counted.
_LARGE_BATCH_BYTES = 256 << 10


class _NotAtOnce(Exception):
    """An answer is too large to be made in one step."""


class _Rendered(NamedTuple):
    """Prepared parts of a batch's responses.

    Attributes:
        made: The status lines that the answers begin with; those of another second differ.
        replies: The connections that wait for nothing but their answers, with these.
        late: What is answered behind these, one by one.
        texts: The texts of what the batch has changed, by path; `_FORGOTTEN` for those without.
        written: The length of all texts that were rendered.
        forgets: Whether some are forgotten.
        refused: The commands that were refused, with the refusals.
        others: The types of those that succeeded and are counted by their type; all else is a set.
        is_removed: Whether a directory was removed.
    """

    made: object
    replies: list[tuple[Connection, bytes]]
    late: list[tuple[Done, Outcome]]
    texts: dict[bytes, bytes]
    written: int
    forgets: bool
    refused: list[tuple[Command, ApiError]]
    others: list[type[Command]]
    is_removed: bool


class WriteResponses:
    """Responses to the writes of batches, to the connections of a server and to other writers.

    Attributes:
        render, respond: The committer's, which are functions whose variables are bound once: that
            costs less than methods.
    """

    def __init__(
        self,
        status_lines: StatusLines,
        *,
        stats: StoreStats,
        texts: ValueCache,
        memory: MemoryBudget,
        fixed_headers: bytes,
    ) -> None:
        self._status_lines = status_lines
        self._memory = memory
        # The bytes of responses to a large batch that are prepared and not sent yet.
        self._held = 0
        self._texts = texts
        self._fixed_headers = fixed_headers
        self.render = self._rendering()
        self.respond = self._responding(stats)

    def _rendering(self) -> Render:  # noqa: C901, PLR0915 -- it is `render`
        lines, kept_text = self._status_lines, self._texts.kept.get
        made: object = None
        ok = created = b""

        # In one loop: a call less for each command.
        def render(round_: Round) -> None:  # noqa: C901, PLR0912, PLR0915
            nonlocal made, ok, created
            if made is not lines.made:
                made = lines.made
                ok, created = self._start(_OK), self._start(_CREATED)
            pending = round_.pending
            base = pending.base
            committed = base.index
            offset_ns = base.clock_offset_ns
            # Of a large batch, the bytes of answers for which there is room.
            left = self._room() if pending.size + pending.replaced > _LARGE_BATCH_BYTES else None
            # Answers to these are made here, as long as there is room.
            waiting: type | None = Connection
            end = END % (pending.pos, base.term)
            replies: list[tuple[Connection, bytes]] = []
            late: list[tuple[Done, Outcome]] = []
            texts: dict[bytes, bytes] = {}
            refused: list[tuple[Command, ApiError]] = []
            others: list[type[Command]] = []
            written = 0
            forgets = is_removed = False
            for done, command, outcome in round_.answers:
                if isinstance(outcome, ApiError):
                    refused.append((command, outcome))
                    late.append((done, outcome))
                    continue
                change, prev, time_ns = outcome
                kind, index, key, value, is_dir, created_index, expiration_ns, refresh = change
                if kind != _SET:
                    others.append(type(command))
                    is_removed = is_removed or (is_dir and kind in REMOVALS)
                if type(done) is not waiting:
                    texts[key], forgets = _FORGOTTEN, True
                    late.append((done, outcome))
                    continue
                try:
                    if value is None:
                        text = _without_value(change, time_ns, offset_ns)
                        kept_now, forgets = _FORGOTTEN, True
                    elif expiration_ns or refresh:
                        node = _new(Node, (value, created_index, index, expiration_ns, 0))
                        text = _text(key, node, time_ns, offset_ns)
                        kept_now, forgets = _FORGOTTEN, True
                    else:
                        text = FILE % (key, value, index, created_index)
                        if text.translate(None, PLAIN) != _QUOTES:
                            text = _text(key, Node(value, created_index, index), 0, 0)
                        kept_now = text
                    length = len(text)
                    written += length
                    if prev is None:
                        answer, size = _MADE[kind]
                        answer %= created, index, end, size + length, text
                    else:
                        # What was changed earlier in the batch is not committed yet.
                        before = kept_text(key) if prev[2] <= committed else texts.get(key)
                        if not before:
                            before = _text(key, prev, time_ns, offset_ns)
                        answer, size = _CHANGED[kind]
                        size += length + len(before)
                        answer %= ok, index, end, size, text, before
                    texts[key] = kept_now
                    replies.append((done, answer))  # type: ignore[arg-type]  # it is `waiting`
                    if left is not None and (left := left - len(answer)) < 0:
                        waiting = None
                except _NotAtOnce:
                    texts[key], forgets = _FORGOTTEN, True
                    late.append((done, outcome))
                except Exception:
                    log.exception("an answer could not be given")
                    texts[key], forgets = _FORGOTTEN, True
            if left is not None:
                self._hold(sum(len(answer) for _, answer in replies))
                late.append((self._let_go, None))  # type: ignore[arg-type]  # it takes anything
            # The fields of `_Rendered`.
            fields = made, replies, late, texts, written, forgets, refused, others, is_removed
            round_.rendered = fields

        return render

    def _responding(self, stats: StoreStats) -> Respond:  # noqa: C901 -- it is `respond`
        lines, render, texts = self._status_lines, self.render, self._texts
        kept, durations = texts.kept, stats.durations
        sets = durations[Set]

        def respond(round_: Round, took: float) -> int:  # noqa: C901 -- a call less for each batch
            if round_.rendered[0] is not lines.made:
                render(round_)
            rendered: _Rendered = round_.rendered  # type: ignore[assignment]
            _, replies, late, changed, written, forgets, refused, others, is_removed = rendered
            for command, refusal in refused:
                stats.count(command, succeeded=False)
                stats.refused(command, refusal)
            for kind in others:
                durations[kind].append(took)
            answers = round_.answers
            succeeded = len(answers) - len(refused)
            sets.extend(repeat(took, succeeded - len(others)))
            kept.update(changed)
            if forgets:
                for key, text in changed.items():
                    if not text:
                        del kept[key]
            if written:
                texts.wrote(written)
            # Whatever was not asked for has expired.
            events = round_.pending.events
            expired = len(events) - succeeded
            if expired or is_removed:
                texts.forget_changed(events)
            for done, answer in replies:
                try:
                    if not done.reply(answer):
                        # It waits for one answer at most.
                        late += [(to, outcome) for to, _, outcome in answers if to is done]
                except Exception:
                    log.exception("an answer could not be given")
            for waiting, outcome in late:
                respond_to(waiting, outcome)
            return expired

        return respond

    def _room(self) -> int:
        """Return how many bytes of responses to a large batch may be held now."""
        self._hold(0)
        memory = self._memory
        return max(0, min(AT_ONCE_BYTES_MAX, memory.answers_max - memory.reserve - memory.answers))

    def _hold(self, size: int) -> None:
        """Count the responses that are held, in place of those of an aborted batch."""
        if size:
            self._memory.take(size)
        if self._held:
            self._memory.give_back(self._held)
        self._held = size

    def _let_go(self, _: object) -> None:
        """Count the responses that are held no longer: they have been sent."""
        self._hold(0)

    def _start(self, status: int) -> bytes:
        """Return what answers to writes begin with: up to the etcd index."""
        start = self._status_lines.start(status, http10=False)
        return b"%b%bX-Etcd-Index: " % (start, self._fixed_headers)


def _without_value(change: Change, time_ns: int, offset_ns: int) -> bytes:
    """Return the JSON of the node of a change that leaves no file: it was removed, mostly."""
    kind, index, key, _, is_dir, created_index, _, _ = change
    if kind in REMOVALS and not is_dir:
        text = REMOVED_FILE % (key, index, created_index)
        if text.translate(None, PLAIN) == _QUOTES_OF_A_REMOVED_ONE:
            return text
    return changed_node(change, time_ns, offset_ns)


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
