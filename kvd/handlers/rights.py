"""Rights of the sender of one request to one key."""

from __future__ import annotations

from kvd.handlers.accounts import Accounts
from kvd.v2.commands import Create, CreateInOrder, Get, Request, Set, Update, Watch
from kvd.v2.documents import auth
from kvd.v2.documents.auth_json import User
from kvd.v2.errors import UNAUTHORIZED, ApiError

DENIED = b"Insufficient credentials"


class Rights:
    """Rights of the sender of one request, a user or a guest (None), to its key.

    A pattern that ends in `*` is a prefix, any other one is that key alone: its children are not
    part of it. So a directory is listed, given children by POST, and given a TTL (which ends them
    all) only where a prefix allows its children; etcd takes the key alone for enough.
    """

    __slots__ = ("_accounts", "_path", "_user")

    def __init__(self, accounts: Accounts, user: User | None, path: bytes) -> None:
        self._accounts = accounts
        self._user = user
        self._path = path

    def may(self, *, write: bool, recursive: bool = False, children: bool = False) -> bool:
        """Return whether the key, or what is below it, may be read or changed."""
        user, accounts = self._user, self._accounts
        names = (auth.GUEST,) if user is None else user.roles or ()
        path = auth.below(self._path) if children else self._path
        return not accounts.enabled or auth.roles_allow(
            names, accounts.grants, path, write=write, recursive=recursive or children
        )

    def narrow(self, request: Request, *, recursive: bool) -> Request:
        """Return a request as far as it is allowed.

        Raises:
            ApiError: it is not allowed.
        """
        write = not isinstance(request, (Get, Watch))
        children = write and self._concerns_children(request)
        if not self.may(write=write, recursive=recursive) or (
            children and not self.may(write=True, children=True)
        ):
            raise ApiError(UNAUTHORIZED, DENIED)
        if isinstance(request, Get) and not self.may(write=False, children=True):
            return request._replace(may_list=False)
        return request

    def _concerns_children(self, command: Request) -> bool:
        match command:
            case CreateInOrder():
                node = self._accounts.view.find(command.key)
                return node is None or node.dir_id != 0
            case Set() | Create():
                return command.dir and command.ttl_s is not None
            case Update():
                node = self._accounts.view.find(command.key)
                return node is not None and node.dir_id != 0
            case _:
                return False

    def may_read(self) -> bool:
        """Return whether the value of the key may be shown."""
        return self.may(write=False)

    def still_allow(self, *, recursive: bool) -> bool:
        """Return whether a watch may continue after a change of users or roles."""
        user = self._user
        if user is not None:
            now = self._accounts.user(user.name)
            # A client that knows only the old password is not that user any more.
            if now is None or now.secret != user.secret:
                return False
            self._user = now
        return self.may(write=False, recursive=recursive)
