"""`/ui/session.json`: what the page shows of the server, and what its visitor may read and write.

The page offers nothing that would be refused. The rights are those of `/v2/keys`, and so is the
judge: what is said here decides nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
PATTERN_CHARACTERS_MAX = 1 << 18
"""Characters of all patterns of one list: a single pattern may be as long as a request body."""
_NO_USERS: dict[str, object] = {
    "auth": False,
    "user": None,
    "roles": [],
    "root": True,
    "cut": False,
    "read": ["/*"],
    "write": ["/*"],
}


class _Listed:
    """Patterns up to the limits; `is_cut`: there are more."""

    def __init__(self) -> None:
        self.patterns: list[str] = []
        self.is_cut = False
        self._room = PATTERN_CHARACTERS_MAX

    def add(self, patterns: Sequence[str]) -> None:
        """Take patterns for as long as there is room."""
        for pattern in patterns:
            self._room -= len(pattern)
            if self._room < 0 or len(self.patterns) == PATTERNS_MAX:
                self.is_cut = True
                return
            self.patterns.append(pattern)


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
        read, write = _Listed(), _Listed()
        for name in roles[:PATTERNS_MAX]:
            role = auth.find_role(accounts.view, name)
            if role is not None:
                read.add(role.permissions.read or ())
                write.add(role.permissions.write or ())
            if read.is_cut or write.is_cut:
                break
        return {
            "auth": True,
            "user": None if user is None else user.name,
            "roles": list(roles[:PATTERNS_MAX]),
            "root": auth.ROOT in roles,
            "cut": read.is_cut or write.is_cut or len(roles) > PATTERNS_MAX,
            "read": read.patterns,
            "write": write.patterns,
        }


ROUTES: tuple[Route, ...] = ((r"/ui/session\.json", Session),)
