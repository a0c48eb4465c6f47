"""Decisions about documents (users, roles, members), as plain values.

A command is decided on the pending state by a pure function, as one of the key space is by
`kvd.v2.rules`; what it decides is a list of documents for the log, and the reply that is sent once
they are durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from kvd.storage.format.records import Document
from kvd.v2.errors import RouteError


class Documents(Protocol):
    """The state that a rule may read: a view of the store, or the tests' dict."""

    def document(self, what: str, name: str) -> Document | None:
        """Return the document of a name, or None."""

    def documents(self, what: str) -> list[Document]:
        """Return all documents of one sort; for sorts of which there are few."""


class AllDocuments(Documents, Protocol):
    """The state that a list is made of."""

    def each_document(self, what: str) -> Iterator[Document]:
        """Yield all documents of one sort, in any order."""


class Reply(NamedTuple):
    """A successful answer of a route; `body` is JSON with its newline, or empty."""

    status: int = 200
    body: bytes = b""


class Decision(NamedTuple):
    """Outcome of a command: documents for the log, and the reply once they are durable."""

    documents: list[Document]
    reply: Reply


Decide = Callable[[Documents, Any], Decision]
"""Decides one command on a state; raises `RouteError` where it is refused: nothing has happened."""

Replied = Callable[[Reply | RouteError], None]
"""Gets the reply or the refusal of a command."""
