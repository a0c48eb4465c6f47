"""Users and roles as the committed state has them, read once until something changes."""

from __future__ import annotations

from collections.abc import Sequence

from kvd.limits.bounded import Bounded
from kvd.storage.index.view import View
from kvd.storage.store import Store
from kvd.v2.documents import auth
from kvd.v2.documents.auth_json import User

# Users, and roles, are kept as they were read until something changes: so much of each.
_KEPT_BYTES_MAX = 8 << 20
# What a text in one of them takes beside its bytes; a character may take four.
_TEXT_BYTES = 64


class Accounts:
    """Cache of users and roles.

    Attributes:
        enabled: Whether authentication is on.
        generation: Number of changes of users and roles since the start.
    """

    def __init__(self, store: Store) -> None:
        self.enabled = False
        self.generation = 0
        self._store = store
        self._users: Bounded[str, User] = Bounded(_KEPT_BYTES_MAX)
        self._roles: Bounded[str, auth.Grants] = Bounded(_KEPT_BYTES_MAX)

    @property
    def view(self) -> View:
        """The committed state, for one look: never across an await."""
        return self._store.view

    def refresh(self) -> None:
        """Forget what was read, after a change of users or roles.

        Raises:
            CorruptIndex, lmdb.Error: the index is damaged.
        """
        self.generation += 1
        self._users.clear()
        self._roles.clear()
        self.enabled = auth.is_enabled(self.view)

    def user(self, name: str) -> User | None:
        """Return a user; one that does not exist is looked up each time, and not kept."""
        user = self._users.kept.get(name)
        if user is None:
            user = auth.find_user(self.view, name)
            if user is not None:
                self._users.keep(name, user, _size(name, user.roles))
        return user

    def grants(self, name: str) -> auth.Grants | None:
        """Return what a role allows, None if there is no such role."""
        grants = self._roles.kept.get(name)
        if grants is None:
            role = auth.find_role(self.view, name)
            if role is not None:
                grants = auth.Grants(role)
                self._roles.keep(name, grants, _size(name, *role.permissions))
        return grants


def _size(name: str, *lists: Sequence[str] | None) -> int:
    """Return the memory of a user or a role that consists of these texts."""
    texts = [name, *(text for texts in lists for text in texts or ())]
    return sum(_TEXT_BYTES + 4 * len(text) for text in texts)
