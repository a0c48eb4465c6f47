"""`GET /new?size=N`: a new token for etcd members that find each other through this server.

It is what discovery.etcd.io answers: a URL below `/v2/keys/_etcd/registry`, where the size of the
new cluster is already. All the rest of the protocol is plain v2, and needs nothing here.

A token is a directory with a TTL. It is made as the guest that asks for it might make it, where
users are asked for.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from http import HTTPStatus
from typing import cast

from kvd.core.batch.round import Outcome
from kvd.core.committer import Committer
from kvd.handlers.authorizer import Authorizer
from kvd.handlers.cross_site import BrowserPolicy
from kvd.handlers.info import Endpoint, Route
from kvd.http.tornado import connection_of
from kvd.storage.store import Store
from kvd.v2.commands import Command, Create
from kvd.v2.errors import TABLE, ApiError
from kvd.v2.extras.parameters import TOO_MANY_TOKENS

REGISTRY = b"/_etcd/registry"
SIZE_MAX = 9999
SIZE_DEFAULT = "3"


class Discovery:
    """Makes tokens.

    Args:
        store: where they are.
        committer: takes the commands that make them.
        authorizer: says what guests may do.
        browsers: says which pages may have a visitor's browser ask for one: that makes something.
        rejected: counts what was refused, by reason.
        urls: the URLs given to clients.
        ttl_s: how long a token lives.
        tokens_max: how many there may be.
    """

    def __init__(
        self,
        *,
        store: Store,
        committer: Committer,
        authorizer: Authorizer,
        browsers: BrowserPolicy,
        rejected: dict[str, int],
        urls: Sequence[str],
        ttl_s: int,
        tokens_max: int,
    ) -> None:
        self.browsers = browsers
        self._store = store
        self._committer = committer
        self._authorizer = authorizer
        self._rejected = rejected
        self._url = next((url for url in urls if url.startswith("http")), urls[0]).rstrip("/")
        self._ttl_s = ttl_s
        self._tokens_max = tokens_max
        self._being_made: set[bytes] = set()

    @property
    def is_full(self) -> bool:
        """Whether there are as many tokens as there may be."""
        view = self._store.view
        node = view.find(REGISTRY)
        found = view.names(node.dir_id, b"", self._tokens_max) if node and node.dir_id else []
        # A token that is being made may be there already, or not yet: it counts once.
        return len(self._being_made.union(found)) >= self._tokens_max

    async def make(self, size: int) -> str:
        """Make a token for a cluster of a size; return its URL once it is durable.

        Raises:
            ApiError: it is not allowed, or there is no room for it.
        """
        name = secrets.token_hex(16).encode()
        path = b"%b/%b" % (REGISTRY, name)
        self._being_made.add(name)
        try:
            # First what ends: nothing is left of it if the second one is not made.
            await self._run(Create(path, b"", dir=True, ttl_s=self._ttl_s))
            await self._run(Create(path + b"/_config/size", b"%d" % size))
        finally:
            self._being_made.remove(name)
        return f"{self._url}/v2/keys{path.decode()}"

    def count_refusal(self) -> None:
        """Count a request for a token when there were too many."""
        self._rejected[TOO_MANY_TOKENS] += 1

    async def _run(self, command: Command) -> None:
        if self._authorizer.enabled:
            self._authorizer.guest(command.key).narrow(command, recursive=False)
        pending: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._committer.submit(command, pending.set_result)
        outcome = await pending
        if isinstance(outcome, ApiError):
            raise outcome


class NewToken(Endpoint):
    """`/new`."""

    async def get(self) -> None:
        """Answer a token's URL, as text without a newline."""
        discovery = cast(Discovery, self.settings["discovery"])
        connection = connection_of(self.request)
        secured = connection.context.protocol == "https"
        refusal = discovery.browsers.refusal("POST", self.request.headers, is_secured=secured)
        size = _number((self.get_query_arguments("size")[:1] or [SIZE_DEFAULT])[0])
        if refusal is not None:
            self._refuse(*refusal)
        elif not 1 <= size <= SIZE_MAX:
            self._refuse(HTTPStatus.BAD_REQUEST, f"size: a number from 1 to {SIZE_MAX} is wanted")
        elif discovery.is_full:
            discovery.count_refusal()
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "there are too many tokens")
        else:
            try:
                self._text(await discovery.make(size))
            except ApiError as error:
                status, message = TABLE[error.code].status, TABLE[error.code].message
                cause = error.cause.decode("utf-8", "replace")
                self._refuse(HTTPStatus(status), f"{message}: {cause}" if cause else message)

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.set_status(status)
        self._text(reason + "\n")


def _number(text: str) -> int:
    """Return a number of ASCII digits that is not very large; 0 for all else."""
    digits = text.lstrip("0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 9 else 0


ROUTES: tuple[Route, ...] = ((r"/new", NewToken),)
