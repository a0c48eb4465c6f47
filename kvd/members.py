"""The one member: what `/v2/members`, `/v2/machines` and `/v2/stats` say of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha1
from typing import NamedTuple


class Member(NamedTuple):
    """This server as a member of a cluster of one; ids are shown in hexadecimal."""

    name: str
    member_id: int
    client_urls: tuple[str, ...]
    peer_urls: tuple[str, ...]

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
            "peerURLs": list(self.peer_urls),
            "clientURLs": list(self.client_urls),
        }


def ids_of(peer_urls: Sequence[str], token: str) -> tuple[int, int]:
    """Return the cluster id and the member id that etcd gives a new cluster of one.

    As in etcd's `membership.NewMember` and `RaftCluster.genID`: the first eight bytes of a hash.
    """
    member = _first_bytes("".join(sorted(peer_urls)).encode() + token.encode())
    return int.from_bytes(_first_bytes(member)), int.from_bytes(member)


def _first_bytes(data: bytes) -> bytes:
    return sha1(data, usedforsecurity=False).digest()[:8]
