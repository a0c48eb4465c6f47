"""The entry of a replica among the members of the store, which is in the log as any document."""

import asyncio
from collections.abc import Callable

from kvd.core.committer import Committer
from kvd.replicas.engine import Leadership
from kvd.storage.store import Store
from kvd.v2.documents.decision import Reply
from kvd.v2.documents.member_commands import publishing
from kvd.v2.documents.members import Member, is_removed
from kvd.v2.errors import RouteError

RETRY_S = 10.0


class Registration:
    """Registers one replica as it is now, and notices when it was removed."""

    def __init__(
        self, store: Store, committer: Committer, own: Member, on_removed: Callable[[], object]
    ) -> None:
        """`on_removed` is called once the state says that this replica is a member no more."""
        self._store = store
        self._committer = committer
        self._own = own
        self._on_removed = on_removed
        self._is_submitted = self._is_stopped = False
        self._retry: asyncio.TimerHandle | None = None
        committer.observe_documents(self.look)

    def on_leadership(self, leadership: Leadership) -> None:
        """Register, if there is a leader to decide that."""
        if leadership.lead is not None:
            self._register()

    def look(self) -> None:
        """Notice a removal."""
        if is_removed(self._store.view, self._own.member_id):
            self._on_removed()

    def stop(self) -> None:
        """Register no more."""
        self._is_submitted = self._is_stopped = True
        if self._retry is not None:
            self._retry.cancel()

    def _register(self) -> None:
        command = publishing(self._store.view, self._own)
        if command is not None and not self._is_submitted:
            self._is_submitted = True
            self._committer.submit_document(command, self._registered)

    def _registered(self, outcome: Reply | RouteError) -> None:
        if self._is_stopped:
            return
        if isinstance(outcome, RouteError):
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)
        else:
            self._is_submitted = False

    def _try_again(self) -> None:
        self._is_submitted = False
        self._register()
