"""The one member: what `/v2/members`, `/v2/machines` and `/v2/stats` say of it."""

from __future__ import annotations

import json
from typing import NamedTuple

PEER_URLS = ("http://localhost:2380",)
"""etcd's default: kvd has no peers, but clients expect a member to have an address for them."""


class Member(NamedTuple):
    """This server as a member of a cluster of one; ids are shown in hexadecimal."""

    name: str
    member_id: int
    client_urls: tuple[str, ...]

    def body(self) -> bytes:
        """Return the member as JSON."""
        return json.dumps(self._as_json(), separators=(",", ":")).encode() + b"\n"

    def list_body(self) -> bytes:
        """Return the list of all members as JSON."""
        return json.dumps({"members": [self._as_json()]}, separators=(",", ":")).encode() + b"\n"

    def machines_body(self) -> bytes:
        """Return the client URLs as `/v2/machines` lists them."""
        return ", ".join(sorted(self.client_urls)).encode()

    def _as_json(self) -> dict[str, object]:
        return {
            "id": f"{self.member_id:x}",
            "name": self.name,
            "peerURLs": list(PEER_URLS),
            "clientURLs": list(self.client_urls),
        }
