"""The routes of monitoring: health, metrics, expvars and the level of the log.

They are served with the API, and `/metrics` and the routes of health also on listeners of their
own (`--listen-metrics-urls`), which answer before the store is recovered and until the server ends.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import cast

import tornado.web
from tornado import httputil

from kvd import logs
from kvd.core.standing import Standing
from kvd.handlers.base import AdminHandler
from kvd.handlers.info import Endpoint
from kvd.http.connection import Connection
from kvd.http.server import Delegate
from kvd.http.tornado import TornadoConnection
from kvd.json_text import escape
from kvd.monitoring.health import Health
from kvd.monitoring.metrics import Metrics
from kvd.storage.store import Store
from kvd.v2.errors import RouteError

_METRICS = "text/plain; version=0.0.4; charset=utf-8"
# The name by which etcd's `/health?exclude=` knows a full disk.
_ALARMS = {"NOSPACE": "space"}


class HealthRoute(Endpoint):
    """`/health`: whether writes are taken; the value is a string, as in etcd."""

    async def get(self) -> None:
        """Answer for all checks, or without the alarms that `exclude` names."""
        health = cast(Health, self.settings["health"])
        excluded = [_ALARMS.get(name, "") for name in self.get_query_arguments("exclude")]
        if await health.is_healthy(excluded):
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish('{"health":"true"}')
        else:
            self.set_status(503)
            self._text('{"health":"false"}\n')


class ReadyRoute(Endpoint):
    """`/readyz`: each check that fails, on a line; with `verbose` also those that do not."""

    allow = ("GET", "HEAD")
    checks: tuple[str, ...] = ()
    """Only these, where there are any."""

    def get(self) -> None:
        """Answer 200 or 503."""
        health = cast(Health, self.settings["health"])
        found = health.checks(self.get_query_arguments("exclude"))
        found = [check for check in found if check.name in (self.checks or check.name)]
        failed = any(check.problem for check in found)
        if failed:
            self.set_status(503)
        verbose = failed or "verbose" in self.request.arguments
        lines = [
            f"[-]{name} failed: {problem}" if problem else f"[+]{name} ok"
            for name, problem in found
            if verbose
        ]
        self._text("\n".join([*lines, "failed" if failed else "ok", ""]))

    def head(self) -> None:
        """Answer as GET, without the body."""
        self.get()


class LiveRoute(ReadyRoute):
    """`/livez`: whether a restart would help."""

    checks = ("log",)


class MetricsRoute(Endpoint):
    """`/metrics`, to any method, as in etcd."""

    async def get(self) -> None:
        """Answer all metrics, in Prometheus' text format."""
        metrics = cast(Metrics, self.settings["metrics"])
        self.set_header("Content-Type", _METRICS)
        self.finish(await metrics.render())

    head = post = put = delete = patch = get


class VariablesRoute(Endpoint):
    """`/debug/vars`: what Go programs show of themselves, as far as kvd has it."""

    def get(self) -> None:
        """Answer in expvar's own layout."""
        status = cast(Callable[[], dict[str, object]], self.settings["raft_status"])
        shown = {
            "cmdline": sys.argv,
            "file_descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "memstats": _memory(),
            "raft.status": status(),
        }
        lines = [f'"{k}": {json.dumps(v, separators=(",", ":"))}' for k, v in shown.items()]
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.finish("{\n" + ",\n".join(lines) + "\n}\n")


class LogLevelRoute(AdminHandler):
    """`/config/local/log`: changes the level of the log until the server ends.

    With authentication on only the user root may do that (in etcd any client may). Audit lines,
    that of this change among them, are written at every level.
    """

    allow = ("PUT",)
    names_cluster = False
    body_bytes_max = 4 << 10

    def put(self) -> None:
        """Take `{"Level":"DEBUG"}`, whatever its Content-Type."""
        try:
            level = _level(self.body.decode("utf-8", "replace"))
        except (ValueError, RecursionError, RouteError):
            self._refuse(b"Invalid json body")
            return
        if not logs.set_level(level.upper()):
            self._refuse(b"Invalid log level " + escape(level.encode("utf-8", "surrogatepass")))
            return
        self.note_change(f" {level.upper()}")
        self.set_status(204)

    def _refuse(self, message: bytes) -> None:
        self.set_status(400)
        self._json(b'{"message":"' + message + b'"}')


def raft_status(store: Store, standing: Standing) -> dict[str, object]:
    """Return what etcd shows of its raft; a server alone has elected itself."""
    member, applied = f"{store.identity.member_id:x}", store.applied
    leader = "0" if standing.leader is None else f"{standing.leader.member_id:x}"
    return {
        "id": member,
        "term": applied.term,
        "vote": leader,
        "commit": applied.pos,
        "lead": leader,
        "raftState": standing.role.raft_state,
        "applied": applied.pos,
        "progress": {
            member: {"match": applied.pos, "next": applied.pos + 1, "state": "StateReplicate"}
        },
        "leadtransferee": "0",
    }


def _memory() -> dict[str, int]:
    """Return those of Go's figures of memory that have a counterpart here, in bytes."""
    pages = [int(field) for field in Path("/proc/self/statm").read_text().split()]
    virtual, resident, shared = (count * resource.getpagesize() for count in pages[:3])
    collections = sum(generation["collections"] for generation in gc.get_stats())
    own = resident - shared
    return {"Alloc": own, "Sys": virtual, "HeapAlloc": own, "HeapSys": own, "NumGC": collections}


def _level(body: str) -> str:
    """Return the level that a body names, read as Go does: the first value, names in any case.

    Raises:
        ValueError: it is no JSON object, or its level is no string.
    """
    value, _ = json.JSONDecoder().raw_decode(body.lstrip(" \t\r\n"))
    if value is None:
        return ""
    if not isinstance(value, dict):
        raise ValueError(body)  # noqa: TRY004 -- the same as for what is no JSON
    level = ""
    for name, member in value.items():
        if name.lower() == "level" and member is not None:
            if not isinstance(member, str):
                raise ValueError(body)
            level = member
    return level


MONITORING = [
    (r"/metrics", MetricsRoute),
    (r"/health", HealthRoute),
    (r"/readyz", ReadyRoute),
    (r"/livez", LiveRoute),
]
"""What is also served on listeners of its own."""
DEBUGGING = [(r"/debug/vars", VariablesRoute), (r"/config/local/log", LogLevelRoute)]


class MonitoringRouter(Delegate[Connection]):
    """Receives the requests of the listeners of their own."""

    def __init__(self, application: tornado.web.Application) -> None:
        self._application = application

    def start_request(self, connection: Connection) -> httputil.HTTPMessageDelegate:
        """Return what receives the next request of a connection."""
        inner = self._application.start_request(connection, TornadoConnection(connection))
        return _WithoutBody(inner, connection)


class _WithoutBody(httputil.HTTPMessageDelegate):
    """Passes a request on without its body, which nothing here reads."""

    def __init__(self, inner: httputil.HTTPMessageDelegate, connection: Connection) -> None:
        self._inner = inner
        self._connection = connection

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        """Take the head."""
        try:
            self._inner.headers_received(start_line, headers)
        except httputil.HTTPInputError:
            self._connection.reject(HTTPStatus.BAD_REQUEST)

    def finish(self) -> None:
        """The request is complete: answer it."""
        self._inner.finish()

    def on_connection_close(self) -> None:
        """The client has gone before it was answered."""
        self._inner.on_connection_close()
