"""`/ui/status.json`: how the server does, for the page `/ui`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from kvd import __version__
from kvd.core.standing import Standing
from kvd.handlers.info import Route
from kvd.handlers.ui.session import UiJson
from kvd.monitoring.samples import EVERY_S, FIELDS, Samples
from kvd.v2.documents import auth
from kvd.v2.documents.members import Member
from kvd.v2.errors import RouteError


class Status(UiJson):
    """`/ui/status.json?since=T`: with the samples that are younger than T."""

    async def get(self) -> None:
        """Answer for the sender of the request: the place of the data is for root alone."""
        samples = cast("Samples | None", self.settings["samples"]())
        assert samples is not None, "the page is served, so samples are taken"
        accounts = self.context.authorizer.accounts
        user = await self.visitor()
        is_root = not accounts.enabled or (user is not None and auth.ROOT in (user.roles or ()))
        since = self._since()
        await samples.measure_disk()
        parts = samples.parts
        applied = parts.store.applied
        store = {name: [*counts] for name, counts in parts.stats.operations().items()}
        self.answer(
            {
                "version": __version__,
                "now": round(samples.now_s, 3),
                "every": EVERY_S,
                "uptime": round(samples.uptime_s, 1),
                "index": applied.index,
                "raftIndex": applied.pos,
                "term": applied.term,
                "oldest": applied.oldest_event,
                "historyLimit": applied.history_limit,
                "connectionsMax": parts.http.limits.connections_max,
                "recovery": parts.store.recovery.source,
                "recoverySeconds": round(parts.recovery_s, 4),
                **({"dataDir": str(parts.store.directory.path)} if is_root else {}),
                "checks": dict(parts.health.checks()),
                "store": {**store, "expire": [parts.stats.expirations, 0]},
                **shown_replica(parts.standing, self.context.members()),
                "fields": FIELDS,
                "samples": samples.since(since),
                "latest": samples.latest(),
            }
        )

    def _since(self) -> float:
        """Return the time in the query; without one, all samples are younger.

        Raises:
            RouteError: 400, it is no number.
        """
        text = self.get_query_argument("since", "0")
        try:
            since = float(text)
        except ValueError:
            since = math.nan
        if not math.isfinite(since):
            raise RouteError(400, "since is no number of seconds")
        return since


def shown_replica(standing: Standing, members: Sequence[Member]) -> dict[str, object]:
    """Return what the page shows of a replica; nothing for a server alone."""
    if standing.engine is None:
        return {}
    leader = standing.leader
    names = [each.name for each in members if leader and each.member_id == leader.member_id]
    shown = {
        "state": str(standing.role),
        "leader": names[0] if names else "",
        "behind": standing.behind_frames,
    }
    return {"replica": shown}


ROUTES: tuple[Route, ...] = ((r"/ui/status\.json", Status),)
