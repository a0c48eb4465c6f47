"""The opening of a server's store, with monitoring served meanwhile.

Alone, a server logs the term of its start. One of several with one store learns first what log that
is (kvd/replicas/replication.py): its term begins when it leads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kvd.config.config import Config
from kvd.core.clock import Clock
from kvd.monitoring.service import Monitoring
from kvd.net.listeners import Listener, bind, own_hosts
from kvd.net.tls import Tls
from kvd.storage.failpoints import Faults
from kvd.storage.format.identity import NewIds
from kvd.storage.index.errors import BROKEN
from kvd.storage.store import Store
from kvd.wiring.context import Fail
from kvd.wiring.store import new_ids, open_store

if TYPE_CHECKING:
    from kvd.replicas.replication import Replication

log = logging.getLogger("kvd.server")  # whose start this is


class Opening:
    """Opens one store; its arguments are those of `KvdServer`.

    Attributes:
        store: The store, once `is_open`.
        clock: Its clock.
        tls: The certificates to serve; None without TLS.
    """

    def __init__(
        self,
        config: Config,
        *,
        watch_crashes: Callable[[Path], None] | None,
        faults: Faults | None,
        new_clock: Callable[[int, int], Clock],
        fail: Fail,
    ) -> None:
        self._config = config
        self._watch_crashes = watch_crashes
        self._faults = faults
        self._new_clock = new_clock
        self._fail = fail
        self.store: Store
        self.is_open = False
        self.clock: Clock
        self.tls: Tls | None = None

    async def recover(
        self,
        monitoring: Monitoring,
        replication: Replication | None,
        urls: Sequence[str],
        started: float,
    ) -> None:
        """Open the store.

        Raises:
            AddressUnavailable, TlsUnusable, StorageError: as for `KvdServer.start`.
        """
        config = self._config
        metrics: list[Listener] = []
        try:
            metrics = bind(config.listen_metrics)
            # What is missing is found before the store is opened; what is made is kept in it.
            self._load_tls(urls, self_signed=False)
            await monitoring.listen(metrics, self.tls)
            await self._open(monitoring, replication)
            self._load_tls(urls, self_signed=True)
            await monitoring.listen(metrics, self.tls)
        except BaseException:
            monitoring.stop()
            for listener in metrics:
                listener.close()
            raise
        recovery = self.store.recovery
        log.info(
            "recovered index %d from %s in %s, %d log records replayed, in %.2f s",
            self.store.applied.index,
            recovery.source,
            config.data_dir,
            recovery.records,
            time.monotonic() - started,
        )

    def _load_tls(self, urls: Sequence[str], *, self_signed: bool) -> None:
        config = self._config
        if config.tls is not None and config.tls.is_self_signed == self_signed:
            hosts = own_hosts([*config.advertise, *urls])
            self.tls = Tls(config.tls, config.data_dir / "tls", hosts)

    async def _open(self, monitoring: Monitoring, replication: Replication | None) -> None:
        """Open the store on a thread, so that the loop serves health checks meanwhile."""
        ids = new_ids(self._config)
        if replication is None:
            await asyncio.to_thread(self._open_store, monitoring, ids, starts_term=True)
            return
        reopen = partial(self._open_store, monitoring, None, starts_term=False)
        ids = await replication.meet(ids)
        await asyncio.to_thread(self._open_store, monitoring, ids, starts_term=False)
        await replication.enter(self.store, reopen)

    def _open_store(
        self, monitoring: Monitoring, ids: NewIds | None, *, starts_term: bool
    ) -> Store:
        config, on_sync = self._config, monitoring.syncs.note
        store = self.store = open_store(config, self._watch_crashes, self._faults, on_sync, ids)
        self.is_open = True
        self.clock = self._new_clock(store.applied.time_ns, store.applied.clock_offset_ns)
        limits = config.event_history_limit, config.event_history_bytes
        try:
            if starts_term:
                store.start_term(self.clock.now_ns(), *limits)
        except BROKEN as damage:
            self._fail(damage)
            raise
        with suppress(OSError):  # without room there is nothing to keep free
            store.index.reserve()
        return store
