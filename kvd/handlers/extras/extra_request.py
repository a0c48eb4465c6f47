"""A request to a path of kvd's own: its body and its sender, before it is served.

As in the key space, no body is received before its sender is known; its memory is counted, and one
that is too long is refused before its end.
"""

from __future__ import annotations

from collections.abc import Callable

from tornado import httputil

from kvd.handlers.authorizer import Admission, Authorizer, KeyHead
from kvd.handlers.keys.key_space import KeySpace
from kvd.handlers.keys.responder import TOO_MUCH
from kvd.v2.errors import RAFT_INTERNAL, ApiError

Serve = Callable[[bytes, Admission | None], None]
"""Serves a complete request; without an admission its sender is not authenticated yet."""


class ExtraRequest:
    """One request, as far as it has been received.

    Args:
        outer: the delegate that the connection has for the request.
        keys: the key space.
        authorizer: admits its sender while authentication is on.
        head: decides on the admission.
        serve: called when it is complete.
        too_large: refuses a body of more than `body_bytes_max`; without it no body is kept.
        body_bytes_max: see there.
    """

    def __init__(
        self,
        outer: httputil.HTTPMessageDelegate,
        keys: KeySpace,
        authorizer: Authorizer,
        head: KeyHead,
        serve: Serve,
        *,
        too_large: ApiError | None = None,
        body_bytes_max: int = 0,
    ) -> None:
        self._outer = outer
        self._keys = keys
        self._authorizer = authorizer
        self._head = head
        self._serve = serve
        self._too_large = too_large
        self._body_bytes_max = body_bytes_max
        self._body: bytearray | None = None if too_large is None else bytearray()
        self._admission: Admission | None = None
        self._waits = self._is_over = False

    def begin(self) -> None:
        """Authenticate the sender before the body is received."""
        if self._body is not None and self._authorizer.enabled:
            self._authorizer.admit(self._head, self._admitted)
            if self._admission is None and not self._is_over:
                self._waits = True
                self._head.connection.wait()

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        if self._body is None:
            return
        has_room = self._head.connection.hold_piece(len(chunk))
        self._body += chunk
        if self._too_large is not None and len(self._body) > self._body_bytes_max:
            self._refuse(self._too_large)
        elif not has_room:
            cause = b"etcdserver: too many requests"
            self._refuse(ApiError(RAFT_INTERNAL, cause, limit=TOO_MUCH))

    def finish(self) -> None:
        """The request is complete."""
        if not self._is_over:
            body, self._body = bytes(self._body or b""), None
            self._serve(body, self._admission)

    def _admitted(self, outcome: Admission | ApiError) -> None:
        connection = self._head.connection
        if isinstance(outcome, ApiError):
            self._is_over = True
            self._body = None
            self._keys.responder.refuse(connection, self._head.method, outcome)
        else:
            self._admission = outcome
            if self._waits:
                connection.proceed(self._outer)

    def _refuse(self, refusal: ApiError) -> None:
        """Answer before the end of a body, and close: far more of it may follow."""
        self._is_over = True
        self._body = None
        connection = self._head.connection
        connection.keep_alive = False
        self._keys.responder.refuse(connection, self._head.method, refusal)
