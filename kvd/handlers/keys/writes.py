"""Writes of the key space: commands to the committer, and the responses to their outcomes.

The response to a large value needs memory of its own before the command is accepted. A client that
may write a key and not read it is shown no value but its own.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from kvd.core.batch.round import REMOVING, Done, Outcome
from kvd.handlers.keys.parts import KeyParts
from kvd.handlers.keys.responder import KEY_TOO_DEEP, VALUE_TOO_LARGE
from kvd.http.connection import Connection
from kvd.json_text import LARGE_VALUE_BYTES
from kvd.limits.memory_budget import Piece
from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS
from kvd.v2.commands import Command
from kvd.v2.errors import COMPARE_FAILED, INVALID_FIELD, INVALID_FORM, ApiError
from kvd.v2.response import action_body, event_body, event_parts

# As plain numbers: a lookup in the enumeration costs as much as a function call.
_OK = int(HTTPStatus.OK)
_CREATED = int(HTTPStatus.CREATED)

NOT_SHOWN = b"the values are not shown, for want of the right to read them"
"""Replaces the values in an error for a client that may not read them."""


class Writes:
    """Submits the commands of one key space and answers them."""

    def __init__(self, parts: KeyParts, *, depth_max: int, value_bytes_max: int) -> None:
        self._state = parts.store.state
        self._committer = parts.committer
        self._memory = parts.memory
        self._values = parts.values
        self._responder = parts.responder
        self._depth_max = depth_max
        self._value_bytes_max = value_bytes_max
        # A request no longer than this can meet neither limit of a write.
        self._unsuspicious_bytes = min(2 * depth_max, value_bytes_max)

    def submit(
        self,
        connection: Connection,
        command: Command,
        size: int,
        *,
        no_value: bool,
        is_blind: bool,
    ) -> None:
        """Submit a command, at once or when there is memory for its response.

        Args:
            connection: where the response goes.
            command: what the client wants.
            size: length of the request's key, query and form together.
            no_value: whether a success omits the values.
            is_blind: whether the client may not read the key.

        Raises:
            ApiError: the key is too deep, or the value too large.
        """
        answer = self._answer_blindly if is_blind else self._answer
        done = partial(answer, connection, no_value)
        if size > self._unsuspicious_bytes:
            self.check(command)
            if not no_value and self._submit_large(connection, command, done):
                return
        connection.is_write()
        self._committer.submit(command, done)

    def check(self, command: Command) -> None:
        """Refuse a write by its size.

        Raises:
            ApiError: its key is too deep, or its value too large.
        """
        depth = command.key.count(b"/")
        if depth > self._depth_max and not isinstance(command, REMOVING):
            cause = f"the key has {depth} components, {self._depth_max} are allowed"
            raise ApiError(INVALID_FIELD, cause.encode(), limit=KEY_TOO_DEEP)
        value = getattr(command, "value", b"")
        if len(value) > self._value_bytes_max:
            cause = f"the value has {len(value)} bytes, {self._value_bytes_max} are allowed"
            raise ApiError(INVALID_FORM, cause.encode(), limit=VALUE_TOO_LARGE)

    def _submit_large(self, connection: Connection, command: Command, done: Done) -> bool:
        """Submit a write of a large value once there is memory for its response, or decline."""
        value = getattr(command, "value", b"")
        if len(value) <= LARGE_VALUE_BYTES:
            return False
        if self._memory.has_room(len(value)):
            self._submit_with_room(command, value, done)
        else:
            submit = partial(self._submit_with_room, command, value, done)
            self._responder.start(
                connection, self._responder.with_room(connection, len(value), submit)
            )
        return True

    def _submit_with_room(self, command: Command, value: bytes, done: Done) -> None:
        piece = self._values.make(value)
        # Held from now on, so that others do not take the room meanwhile.
        piece.hold()
        self._committer.submit(command, partial(self._answer_large, piece, done))

    def _answer_large(self, piece: Piece, done: Done, outcome: Outcome) -> None:
        if not isinstance(outcome, ApiError):
            self._values.name(outcome.change.index, piece)
        done(outcome)
        piece.drop()

    def without_value(self, connection: Connection) -> Done:
        """Return what answers a command, and omits the values of a success."""
        return partial(self._answer, connection, True)

    def answer(self, connection: Connection, outcome: Outcome) -> None:
        """Answer a command whose outcome is durable."""
        self._answer(connection, False, outcome)

    def _answer(self, connection: Connection, no_value: bool, outcome: Outcome) -> None:
        if isinstance(outcome, ApiError):
            self._responder.refuse(connection, "", outcome)
            return
        change = outcome.change
        removal = change.kind in REMOVALS
        if no_value and not removal:
            body: bytes | None = action_body(change.kind)
        else:
            body = event_body(outcome, self._state.applied.clock_offset_ns)
        made = outcome.prev is None and not removal
        if body is None:
            status = _CREATED if made else _OK
            parts = event_parts(outcome, self._state.applied.clock_offset_ns)
            pieces = self._values.pieces(parts)
            connection.respond_in_pieces(status, self._responder.head(change.index), pieces)
        else:
            connection.respond(_CREATED if made else _OK, self._responder.head(change.index), body)

    def _answer_blindly(self, connection: Connection, no_value: bool, outcome: Outcome) -> None:
        """Answer a command whose sender may not read the key: show no value but its own."""
        if isinstance(outcome, ApiError):
            if outcome.code == COMPARE_FAILED:
                outcome = ApiError(COMPARE_FAILED, NOT_SHOWN, outcome.index)
            self._responder.refuse(connection, "", outcome)
            return
        change, prev, time_ns = outcome
        removal = change.kind in REMOVALS
        status = _CREATED if prev is None and not removal else _OK
        shown = Event(change, None, time_ns)
        # A refresh shows the value that was there.
        no_value = (no_value or change.refresh) and not removal
        body = action_body(change.kind) if no_value else event_body(shown)
        if body is None:
            pieces = self._values.pieces(event_parts(shown))
            connection.respond_in_pieces(status, self._responder.head(change.index), pieces)
        else:
            connection.respond(status, self._responder.head(change.index), body)
