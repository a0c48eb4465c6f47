"""Stages of a connection's life, and which may follow which.

    AT_REST  <-->  READING  <-->  QUEUED
       ^             |   ^
       |             v   |
    ANSWERING --->  BUSY, STREAMING          from everywhere: CLOSING, CLOSED

A connection at rest has nothing received, nothing to send and nothing else that is due: its next
request may be served from where it was read, with no look at any other state. `ANSWERING` is the
same during a request, until its response. Whatever else happens disturbs the two.
"""

from __future__ import annotations

from enum import IntEnum


class Stage(IntEnum):
    """A stage. Their order matters: requests are read in the first three, answered in the next."""

    AT_REST = 0
    """Between requests, with nothing due."""
    READING = 1
    """A request is being received, or nothing is and something else may be due."""
    QUEUED = 2
    """What was received waits for its turn of the event loop (`kvd.limits.turns`)."""
    ANSWERING = 3
    """A request is answered by `Connection.reply`, and nothing else is due."""
    BUSY = 4
    """A request is answered, and something else may be due then; or its body waits."""
    STREAMING = 5
    """The response may take for ever: a client that stops sending is taken to have gone."""
    CLOSING = 6
    """All was sent; what is received is dropped until the client closes, for a limited time."""
    CLOSED = 7
    """The transport is gone; what is sent is dropped."""


AT_REST, READING, QUEUED, ANSWERING, BUSY, STREAMING, CLOSING, CLOSED = Stage

_END = frozenset({CLOSING, CLOSED})
PERMITTED: dict[Stage, frozenset[Stage]] = {
    AT_REST: frozenset({READING, ANSWERING, BUSY, CLOSED}),
    READING: _END | {AT_REST, QUEUED, ANSWERING, BUSY},
    QUEUED: _END | {READING},
    ANSWERING: frozenset({AT_REST, READING, BUSY, CLOSED}),
    BUSY: frozenset({READING, STREAMING, CLOSED}),
    STREAMING: frozenset({READING, CLOSED}),
    CLOSING: frozenset({CLOSED}),
    CLOSED: frozenset(),
}
"""The stages that may follow each; asserted by tests, not at run time."""

DISTURBED = tuple({AT_REST: READING, ANSWERING: BUSY}.get(stage, stage) for stage in Stage)
"""The stage, by the one before, once anything but a plain request is due."""
