"""Files of the page `/ui`, with the headers that confine what it may do in a browser.

They are read once, at the start. A request names one of them or nothing: no path is ever joined.
Every address in the page is relative, so that it works below any path of a reverse proxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

import tornado.web

from kvd.handlers.info import Endpoint, Route

_INDEX = "index.html"
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "json": "application/json",
    "txt": "text/plain; charset=utf-8",
}
HEADERS = {
    # No script, style, font or picture but the page's own, no inline script or style, no eval, no
    # frame. lit-html makes its templates by a Trusted Types policy of its own.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types lit-html"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _File(NamedTuple):
    body: bytes
    content_type: str
    etag: str


@cache
def files() -> Mapping[str, _File]:
    """Return the files of the page by their path below `/ui/`."""
    return dict(_read(resources.files("kvd") / "ui", ""))


def _read(folder: Traversable, prefix: str) -> Iterator[tuple[str, _File]]:
    for entry in folder.iterdir():
        name = prefix + entry.name
        if entry.is_dir():
            yield from _read(entry, f"{name}/")
        elif content_type := _TYPES.get(name.rpartition(".")[2]):
            body = entry.read_bytes()
            yield name, _File(body, content_type, f'"{sha256(body).hexdigest()[:32]}"')


class UiEndpoint(Endpoint):
    """A route below `/ui`; `caching` is its Cache-Control."""

    caching = "no-store"

    def set_default_headers(self) -> None:
        """Confine the page, in every answer: errors too."""
        super().set_default_headers()
        self.set_header("Cache-Control", self.caching)
        for name, value in HEADERS.items():
            self.set_header(name, value)


class Redirect(UiEndpoint):
    """`/ui`: on to `/ui/`, to which the addresses in the page are relative."""

    allow = ("GET", "HEAD")

    def get(self) -> None:
        """Answer with a relative address: a proxy may show the page below another path."""
        self.set_status(308)
        self.set_header("Location", "ui/")
        self.finish()

    head = get


class PageFile(UiEndpoint):
    """`/ui/NAME`; the page itself without a name."""

    allow = ("GET", "HEAD")
    caching = "no-cache"

    def get(self, name: str) -> None:
        """Answer the file, or 304 if the browser has it."""
        file = files().get(name or _INDEX)
        if file is None:
            raise tornado.web.HTTPError(404)
        self.set_header("Content-Type", file.content_type)
        self.set_header("Etag", file.etag)
        if self.check_etag_header():
            self.set_status(304)
            self.finish()
        else:
            self.finish(file.body)

    head = get


ROUTES: tuple[Route, ...] = ((r"/ui", Redirect), (r"/ui/(.*)", PageFile))
"""These come last: any other route below `/ui/` has a name of its own."""
