"""Base of the routes that need the role root while authentication is on."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import tornado.web

from kvd.handlers.authorizer import Authorizer, caller_of
from kvd.handlers.info import Endpoint
from kvd.http.tornado import connection_of
from kvd.logs import audit
from kvd.storage.index.errors import BROKEN
from kvd.v2 import go_json
from kvd.v2.documents.decision import Reply
from kvd.v2.documents.entries import EntryCommand
from kvd.v2.errors import RouteError


class AdminHandler(Endpoint):
    """A route whose errors are `RouteError`s; `for_all` are the methods open to any client."""

    for_all: tuple[str, ...] = ()
    names_cluster = True
    """Whether responses to admitted clients have the header X-Etcd-Cluster-Id."""
    _is_in = False
    _user = ""

    @property
    def authorizer(self) -> Authorizer:
        """The authorizer of the server."""
        return self.context.authorizer

    async def prepare(self) -> None:
        """Refuse an invalid request before its body is read, in etcd's order."""
        self.check_path()
        if self.request.method not in self.allow:
            raise tornado.web.HTTPError(405)
        connection = connection_of(self.request)
        headers = self.request.headers.get_list("Authorization")
        if self.request.method not in self.for_all:
            caller = caller_of(headers, connection.context)
            self._user = await self.authorizer.administrator(caller, connection)
        self._is_in = True
        self.set_default_headers()

    def check_path(self) -> None:
        """Refuse a path that is no path of this route, by a `RouteError`."""

    def set_default_headers(self) -> None:
        """Name the cluster in responses to admitted clients."""
        super().set_default_headers()
        if self._is_in and self.names_cluster:
            self.set_header("X-Etcd-Cluster-Id", f"{self.context.cluster_id:x}")

    async def submit_document(self, command: EntryCommand) -> None:
        """Have a change decided and logged; answer when it is durable."""
        pending: asyncio.Future[Reply | RouteError] = asyncio.get_running_loop().create_future()
        self.context.submit_document(command, pending.set_result)
        outcome = await pending
        if isinstance(outcome, RouteError):
            raise outcome
        self.note_change()
        self.set_status(outcome.status)
        if outcome.status != 204:
            self._json(outcome.body)

    def note_change(self, change: str = "") -> None:
        """Log a change with its client; `change` says more than the request's path."""
        method, path = self.request.method, self.request.path
        audit.info("%s %s%s, asked for by %s", method, path, change, self._user)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write an error as etcd does."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, RouteError):
            self.set_status(error.status)
            self._json(go_json.encode({"message": error.message}))
        else:
            super().write_error(status_code, **kwargs)

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log a bug; damage to the index ends the process."""
        if isinstance(value, BROKEN):
            self.authorizer.damaged(value)
        if not isinstance(value, RouteError):
            super().log_exception(typ, value, tb)
