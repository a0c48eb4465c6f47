"""`/ui/session.json`: what the page shows of the server, and what its visitor may read and write.

The page offers nothing that would be refused. The rights are those of `/v2/keys`, and so is the
judge: what is said here decides nothing.
"""

from __future__ import annotations

import json
from typing import Any

from kvd import __version__
from kvd.handlers.authorizer import caller_of
from kvd.handlers.info import Route
from kvd.handlers.ui.files import UiEndpoint
from kvd.http.tornado import connection_of
from kvd.v2.documents import auth
from kvd.v2.documents.auth_json import User
from kvd.v2.errors import RouteError

PATTERNS_MAX = 1000
"""Patterns that are listed, of those to read and of those to write; roles may have far more."""
_NO_USERS: dict[str, object] = {
    "auth": False,
    "user": None,
    "roles": [],
    "root": True,
    "cut": False,
    "read": ["/*"],
    "write": ["/*"],
}


class UiJson(UiEndpoint):
    """A route that answers JSON to the visitor of the page."""

    async def visitor(self) -> User | None:
        """Return the user that sent the request; None is a guest.

        Raises:
            RouteError: 401, the name or the password is wrong; 503, too many are being checked.
        """
        connection = connection_of(self.request)
        headers = self.request.headers.get_list("Authorization")
        caller = caller_of(headers, connection.context)
        return await self.context.authorizer.identify(caller, connection)

    def answer(self, fields: dict[str, object]) -> None:
        """Answer a JSON object."""
        self._json(json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode())

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write an error with its reason; no header that has a browser ask for a password."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, RouteError):
            self.set_status(error.status)
            self.answer({"message": error.message})
        else:
            super().write_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Log what is no answer to the client: a bug."""
        if not isinstance(value, RouteError):
            super().log_exception(typ, value, tb)


class Session(UiJson):
    """`/ui/session.json`."""

    async def get(self) -> None:
        """Answer for the sender of the request."""
        user = await self.visitor()
        context = self.context
        self.answer(
            {
                "version": __version__,
                "name": context.member.name,
                "cluster": f"{context.cluster_id:x}",
                **self._rights(user),
                "readOnly": bool(self.settings["ui_read_only"]),
            }
        )

    def _rights(self, user: User | None) -> dict[str, object]:
        accounts = self.context.authorizer.accounts
        if not accounts.enabled:
            return {**_NO_USERS}
        roles = (auth.GUEST,) if user is None else user.roles or ()
        read: list[str] = []
        write: list[str] = []
        for name in roles:
            role = auth.find_role(accounts.view, name)
            if role is not None:
                read += role.permissions.read or ()
                write += role.permissions.write or ()
            if max(len(read), len(write)) > PATTERNS_MAX:
                break
        return {
            "auth": True,
            "user": None if user is None else user.name,
            "roles": list(roles[:PATTERNS_MAX]),
            "root": auth.ROOT in roles,
            "cut": max(len(read), len(write)) > PATTERNS_MAX,
            "read": read[:PATTERNS_MAX],
            "write": write[:PATTERNS_MAX],
        }


ROUTES: tuple[Route, ...] = ((r"/ui/session\.json", Session),)
