"""Every route but the key space, as Tornado handlers; the bodies of errors are Go's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, cast

import tornado.web

from kvd.core.standing import Standing
from kvd.handlers.authorizer import Authorizer
from kvd.handlers.long_documents import LongDocuments
from kvd.http.sending.status_lines import SERVER_HEADER
from kvd.v2.documents.decision import Replied
from kvd.v2.documents.entries import EntryCommand
from kvd.v2.documents.members import Member, machines_body, replicas
from kvd.v2.errors import RouteError

log = logging.getLogger(__name__)

# The API level that is served: clients choose their dialect by it. kvd's own version is in the
# Server header.
ETCD_SERVER_VERSION = "3.4.23"
ETCD_CLUSTER_VERSION = "3.4.0"
ETCD_VERSION = json.dumps(
    {"etcdserver": ETCD_SERVER_VERSION, "etcdcluster": ETCD_CLUSTER_VERSION}, separators=(",", ":")
).encode()

_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"


class HandlerContext(NamedTuple):
    """Sources of the bodies, and the parts of the server that routes need."""

    store_stats: Callable[[], bytes]
    self_stats: Callable[[], bytes]
    leader_stats: Callable[[], bytes | None]
    """Returns None where this member does not lead."""
    member: Member
    cluster_id: int
    standing: Standing
    authorizer: Authorizer
    documents: LongDocuments
    submit_document: Callable[[EntryCommand, Replied], None]

    def members(self) -> Sequence[Member]:
        """Return all members, by their ids."""
        view = self.authorizer.accounts.view
        if self.standing.engine is None:
            return [self.member.as_changed(view)]
        return replicas(view, self.member)


@tornado.web.stream_request_body
class Endpoint(tornado.web.RequestHandler):
    """A route; `allow` are the methods that it answers.

    It is prepared before the body comes, of which it keeps up to `body_bytes_max`. (Otherwise
    Tornado would keep and parse forms and multipart bodies that no route reads.)
    """

    allow: tuple[str, ...] = ("GET",)
    body_bytes_max = 0
    _body_bytes = 0

    def initialize(self) -> None:
        """Begin without a body, which then grows in place: a copy a piece would be quadratic."""
        self._body = bytearray()

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body."""
        self._body_bytes += len(chunk)
        if self._body_bytes <= self.body_bytes_max:
            self._body += chunk
        else:
            self._body.clear()

    @property
    def body(self) -> bytes:
        """The body of the request.

        Raises:
            RouteError: 413, it is too large.
        """
        if self._body_bytes > self.body_bytes_max:
            message = f"Request body larger than {self.body_bytes_max} bytes."
            raise RouteError(413, message)
        return bytes(self._body)

    @property
    def context(self) -> HandlerContext:
        """The parts of the server that routes need."""
        return cast(HandlerContext, self.settings["context"])

    def set_default_headers(self) -> None:
        """Name the server as every other answer does."""
        self.set_header("Server", SERVER_HEADER)
        self.clear_header("Content-Type")

    def compute_etag(self) -> None:
        """Answer no conditional requests: etcd does not."""
        return

    def write_error(self, status_code: int, **_kwargs: Any) -> None:
        """Write an error as etcd does."""
        if status_code == 405:
            if self.allow:
                self.set_header("Allow", ",".join(self.allow))
            self._text("Method Not Allowed\n")
        elif status_code == 404:
            # Below /v3 etcd answers by its gateway.
            gateway = self.request.path.startswith("/v3/")
            self._text("Not Found\n" if gateway else "404 page not found\n")
        else:
            self.set_header("Content-Type", _JSON)
            self.finish(b'{"message":"Internal Server Error"}')

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        """Take any bytes in a path: what is no UTF-8 names nothing, but is no error of its own."""
        return value.decode("utf-8", "surrogateescape")

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log what is no answer to the client: a bug."""
        if not isinstance(value, tornado.web.HTTPError):
            log.error("a request could not be served", exc_info=value)

    def _text(self, body: str) -> None:
        self.set_header("Content-Type", _TEXT)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(body)

    def _json(self, body: bytes) -> None:
        self.set_header("Content-Type", _JSON)
        self.finish(body)


class NotFound(Endpoint):
    """Every path that is no route, whatever the method."""

    def prepare(self) -> None:
        """Refuse a path that is no route."""
        raise tornado.web.HTTPError(404)

    def write_error(self, status_code: int, **_kwargs: Any) -> None:
        """Answer that there is no such page, whatever the method."""
        self.set_status(404)
        super().write_error(404)


class Version(Endpoint):
    """`/version`."""

    def get(self) -> None:
        """Answer the API level."""
        self._json(ETCD_VERSION)


class StoreStatistics(Endpoint):
    """`/v2/stats/store`."""

    def get(self) -> None:
        """Answer the counters."""
        self._json(self.context.store_stats())


class SelfStatistics(Endpoint):
    """`/v2/stats/self`."""

    def get(self) -> None:
        """Answer the name, id and start time of this member."""
        self._json(self.context.self_stats())


class LeaderStatistics(Endpoint):
    """`/v2/stats/leader`."""

    def get(self) -> None:
        """Answer how the followers do."""
        body = self.context.leader_stats()
        if body is None:
            self.set_status(403)
            body = b'{"message":"not current leader"}'
        self._json(body)


class Machines(Endpoint):
    """`/v2/machines`."""

    allow = ("GET", "HEAD")

    def get(self) -> None:
        """Answer the URLs that clients are to use."""
        self.set_header("Content-Type", _TEXT)
        self.finish(machines_body(self.context.members()))

    def head(self) -> None:
        """Answer as GET, without the body."""
        self.get()


Route = tuple[str, type[tornado.web.RequestHandler]]

ROUTES: tuple[Route, ...] = (
    (r"/version", Version),
    (r"/v2/stats/store", StoreStatistics),
    (r"/v2/stats/self", SelfStatistics),
    (r"/v2/stats/leader", LeaderStatistics),
    (r"/v2/machines", Machines),
)


def make_application(routes: Sequence[Route], **settings: object) -> tornado.web.Application:
    """Return the application that serves these routes and no others.

    Those in `ROUTES` need the setting `context`.
    """
    application = tornado.web.Application(
        list(routes), default_handler_class=NotFound, log_function=_log_nothing
    )
    application.settings.update(settings)
    return application


def _log_nothing(handler: tornado.web.RequestHandler) -> None:
    """Requests are not logged here; see kvd/http/access_log.py."""
