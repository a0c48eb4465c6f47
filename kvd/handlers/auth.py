"""The routes below `/v2/auth`: users, roles, and the switch of authentication."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from kvd.handlers.base import AdminHandler
from kvd.handlers.long_documents import Render
from kvd.http.tornado import connection_of
from kvd.v2 import go_json
from kvd.v2.documents import auth
from kvd.v2.documents.auth_commands import Command, DeleteRole, DeleteUser, PutRole, PutUser, Switch
from kvd.v2.documents.auth_json import read_role, read_user
from kvd.v2.errors import RouteError

_T = TypeVar("_T")

_OF_ONE = ("GET", "PUT", "DELETE")


class _AuthEndpoint(AdminHandler):
    """A route whose changes are those of `kvd.v2.documents.auth_commands`."""

    # etcd reads any body; a role of ten thousand patterns has its place in this.
    body_bytes_max = 256 << 10

    async def change(self, command: Command) -> None:
        """Have a command decided and logged; answer when that is durable."""
        await self.submit_document(command)


class _Named(_AuthEndpoint):
    """All users or roles, or the one that the rest of the path names."""

    def check_path(self) -> None:
        """Take the name, which has no slashes."""
        self.name = self.path_args[0].strip("/")
        if "/" in self.name:
            raise RouteError(400, "Invalid path")
        self.allow = _OF_ONE if self.name else ("GET",)

    async def read(self, read: Callable[[bytes, str], _T]) -> _T:
        """Read the body; other requests are served between two long bodies."""
        async with self.context.documents.reading:
            await asyncio.sleep(0)
            return read(self.body, self.name)

    async def answer_with(self, render: Render) -> None:
        """Answer with what is rendered in turns, one response after another."""
        connection = connection_of(self.request)
        body = await self.context.documents.render(connection, render)
        if not connection.gone:
            self._json(body)


class Users(_Named):
    """`/v2/auth/users` and `/v2/auth/users/NAME`."""

    async def get(self, _: str) -> None:
        """Answer a user with its roles, or all users."""
        await self.answer_with(
            partial(auth.user_json, name=self.name) if self.name else auth.users_json
        )

    async def put(self, _: str) -> None:
        """Make a user, or change one."""
        asked = await self.read(read_user)
        secret = await self.authorizer.hash(asked.password) if asked.password else None
        await self.change(PutUser(asked.name, secret, asked.roles, asked.grant, asked.revoke))

    async def delete(self, _: str) -> None:
        """Remove a user."""
        await self.change(DeleteUser(self.name))


class Roles(_Named):
    """`/v2/auth/roles` and `/v2/auth/roles/NAME`."""

    async def get(self, _: str) -> None:
        """Answer a role, or all of them."""
        await self.answer_with(
            partial(auth.role_json, name=self.name) if self.name else auth.roles_json
        )

    async def put(self, _: str) -> None:
        """Make a role, or change one."""
        await self.change(PutRole(await self.read(read_role)))

    async def delete(self, _: str) -> None:
        """Remove a role."""
        await self.change(DeleteRole(self.name))


class Enable(_AuthEndpoint):
    """`/v2/auth/enable`: whether authentication is on, which any client may read."""

    allow = _OF_ONE
    for_all = ("GET",)

    def get(self) -> None:
        """Answer whether authentication is on."""
        self._json(go_json.encode({"enabled": self.authorizer.enabled}) + b"\n")

    async def put(self) -> None:
        """Turn authentication on."""
        await self.change(Switch(on=True))

    async def delete(self) -> None:
        """Turn authentication off."""
        await self.change(Switch(on=False))


ROUTES = [
    (r"/v2/auth/users(|/.*)", Users),
    (r"/v2/auth/roles(|/.*)", Roles),
    (r"/v2/auth/enable", Enable),
]
