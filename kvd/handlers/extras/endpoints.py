"""Endpoints of the extras that lead to no keys: `/v2/extras`, by which a client knows of them.

Where they are off there is no such path, as on etcd.
"""

from __future__ import annotations

import json

from kvd.handlers.info import Endpoint, Route
from kvd.v2.extras.parameters import capability


class ExtrasEndpoint(Endpoint):
    """`/v2/extras`: the supported extras, readable by any client."""

    allow = ("GET", "HEAD")

    def get(self) -> None:
        """Answer their names and limits."""
        self._json(json.dumps(capability(), separators=(",", ":")).encode())

    def head(self) -> None:
        """Answer as GET, without the body."""
        self.get()


ROUTES: tuple[Route, ...] = ((r"/v2/extras", ExtrasEndpoint),)
