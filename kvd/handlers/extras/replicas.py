"""`/v2/replicas`: the replicas of a store, by their own reports; and the hand-over of the lead.

A server alone has no such path.
"""

from __future__ import annotations

import json
from typing import Any, cast

from kvd.core.standing import Replica
from kvd.handlers.base import AdminHandler
from kvd.handlers.info import Route
from kvd.v2.errors import RouteError


class Replicas(AdminHandler):
    """`/v2/replicas`: readable by any client, as the members are."""

    for_all = ("GET",)

    def get(self) -> None:
        """Answer the reports, and what this replica knows of leader and engine."""
        standing = self.context.standing
        leader, engine = standing.leader, standing.engine
        assert engine is not None, "a server alone has no such path"
        shown = {
            "id": self.context.member.shown_id,
            "leader": "" if leader is None else f"{leader.member_id:x}",
            "engine": {
                "url": cast(str, self.settings["engine_url"]),
                "bytes": engine.used_bytes,
                "quotaBytes": engine.quota_bytes,
                "silentSeconds": round(engine.silent_s, 3),
            },
            "replicas": [_shown(each) for each in standing.replicas()],
        }
        self._json(json.dumps(shown, separators=(",", ":")).encode() + b"\n")


class HandOver(AdminHandler):
    """`/v2/replicas/hand-over`: the leader lets another replica lead."""

    allow = ("POST",)

    async def post(self) -> None:
        """Answer once another replica may lead."""
        if not await self.context.standing.hand_over():
            raise RouteError(403, "not current leader")
        self.note_change()
        self.set_status(204)


def _shown(replica: Replica) -> dict[str, Any]:
    return {
        "id": f"{replica.member_id:x}",
        "name": replica.name,
        "state": replica.role,
        "applied": replica.applied,
        "durable": replica.durable,
        "clientURLs": replica.client_urls,
        "version": replica.version,
        "seenSeconds": None if replica.seen_s is None else round(replica.seen_s, 3),
    }


ROUTES: tuple[Route, ...] = (
    (r"/v2/replicas", Replicas),
    (r"/v2/replicas/hand-over", HandOver),
)
