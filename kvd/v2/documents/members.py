"""Members: what `/v2/members`, `/v2/machines` and `/v2/stats` say of them.

    document  "member"   by the id in hexadecimal, one of
        {"peerURLs"}                       of a server alone, once a client has changed them
        {"name","peerURLs","clientURLs"}   of a replica, by its own word; with an empty name, of one
                                           that a client has announced
        {"removed":true}                   of one that was removed, for ever

A cluster of one that took a second member would, in etcd, lose its quorum until that member is
there. A server alone has no others, so another one is refused instead, and so is removing the only
one. Commands that change members: member_commands.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import NamedTuple

from kvd.storage.format.records import Document
from kvd.v2 import go_json
from kvd.v2.documents.decision import Documents
from kvd.v2.documents.peer_urls import read_urls
from kvd.v2.errors import RouteError

MEMBER = "member"
"""The sort of their documents."""
REMOVED = go_json.encode({"removed": True})
_ID_MAX = (1 << 64) - 1
_HEX = frozenset("0123456789abcdefABCDEF")
_TYPE = 'struct { PeerURLs []string "json:\\"peerURLs\\"" }'
"""What Go calls the type that it reads requests into."""


class Member(NamedTuple):
    """A member of the cluster; ids are shown in hexadecimal."""

    name: str
    member_id: int
    client_urls: tuple[str, ...]
    peer_urls: tuple[str, ...]

    @property
    def shown_id(self) -> str:
        """The id as it is shown."""
        return f"{self.member_id:x}"

    def as_changed(self, state: Documents) -> Member:
        """Return the member with the peer URLs that a client has set, if any."""
        document = state.document(MEMBER, self.shown_id)
        if document is None or document.content is None or document.content == REMOVED:
            return self
        return self._replace(peer_urls=tuple(_peer_urls(document.content)))

    def content(self) -> bytes:
        """Return the document of a replica."""
        fields = self.fields()
        del fields["id"]
        return go_json.encode(fields)

    def body(self) -> bytes:
        """Return the member as JSON."""
        return go_json.encode(self.fields()) + b"\n"

    def fields(self) -> dict[str, go_json.Value]:
        """Return what is shown of it."""
        return {
            "id": self.shown_id,
            "name": self.name,
            "peerURLs": self.peer_urls,
            "clientURLs": self.client_urls,
        }


def list_body(members: Sequence[Member]) -> bytes:
    """Return a list of members as JSON."""
    return go_json.encode({"members": [member.fields() for member in members]}) + b"\n"


def machines_body(members: Sequence[Member]) -> bytes:
    """Return the client URLs as `/v2/machines` lists them."""
    return ", ".join(sorted(url for member in members for url in member.client_urls)).encode()


def registered(state: Documents) -> list[Member]:
    """Return the members that have documents and were not removed, by their ids."""
    found = [_stored(document) for document in state.documents(MEMBER)]
    return sorted((one for one in found if one is not None), key=lambda one: one.member_id)


def replicas(state: Documents, own: Member) -> list[Member]:
    """Return all replicas by their ids: those registered, and this one in any case."""
    found = registered(state)
    if not is_replica(state, own.member_id):
        found = [one for one in found if one.member_id != own.member_id] + [own.as_changed(state)]
    return sorted(found, key=lambda one: one.member_id)


def is_removed(state: Documents, member_id: int) -> bool:
    """Return whether a member was removed."""
    document = state.document(MEMBER, f"{member_id:x}")
    return document is not None and document.content == REMOVED


def is_replica(state: Documents, member_id: int) -> bool:
    """Return whether a member is one of several, announced or registered."""
    document = state.document(MEMBER, f"{member_id:x}")
    return document is not None and (document.content or b"").startswith(b'{"name":')


def _stored(document: Document) -> Member | None:
    """Return the member of a document; None if it was removed."""
    if document.content is None or document.content == REMOVED:
        return None
    names = ("name", "peerURLs", "clientURLs")
    found = dict(go_json.fields(go_json.decode(document.content), names))
    peers, clients = (_texts(found.get(name)) for name in names[1:])
    name = go_json.text_of(found.get("name"))
    return Member(name, int(document.name, 16), clients, peers)


def _texts(field: go_json.Value) -> tuple[str, ...]:
    return tuple(map(go_json.text_of, field)) if isinstance(field, list) else ()


def read_id(text: str) -> int:
    """Return the id in a path.

    Raises:
        RouteError: 404, it is none, so there is no such member.
    """
    number = int(text, 16) if text and _HEX.issuperset(text) else -1
    if not 0 <= number <= _ID_MAX:
        raise RouteError(404, f"No such member: {text}")
    return number


def read_peer_urls(content_type: str, body: bytes) -> tuple[str, ...]:
    """Return the URLs that a request gives a member.

    Raises:
        RouteError: 415, it is not called JSON; 400, it is none, or a URL is none.
    """
    media_type, semicolon, _ = content_type.partition(";")
    if semicolon:
        media_type = media_type.lower().strip()
    if media_type != "application/json":
        raise RouteError(415, f"Bad Content-Type {media_type}, accept application/json")
    try:
        return read_urls(_peer_urls(body))
    except go_json.Malformed as error:
        raise RouteError(400, str(error)) from None


def refuse_another(member: Member, peer_urls: Sequence[str]) -> RouteError:
    """Return why a member of these URLs is not added."""
    if set(peer_urls) & set(member.peer_urls):
        return RouteError(409, "membership: peerURL exists")
    return RouteError(500, "kvd is a store of one member: no other one can be added")


def refuse_removal(member: Member, member_id: int) -> RouteError:
    """Return why a member is not removed."""
    if member_id != member.member_id:
        return RouteError(404, f"No such member: {member_id:x}")
    return RouteError(500, "Internal Server Error")


def _peer_urls(content: bytes) -> list[str]:
    """Return the field of a document, in whose type Go finds fault in its own words."""
    value = go_json.decode(content)
    urls: list[str] = []
    if value is None:
        return urls
    if not isinstance(value, tuple):
        name = go_json.name_of(value)
        raise go_json.Malformed(f"json: cannot unmarshal {name} into Go value of type {_TYPE}")
    for _, field in go_json.fields(value, ("peerURLs",)):
        if field is not None and not isinstance(field, list):
            raise _mistyped(field, "[]string")
        for item in field or ():
            if item is not None and not isinstance(item, str):
                raise _mistyped(item, "string")
        urls = [go_json.text_of(item) for item in field or ()]
    return urls


def _mistyped(value: go_json.Value, wanted: str) -> go_json.Malformed:
    return go_json.Malformed(
        f"json: cannot unmarshal {go_json.name_of(value)} into Go struct field .peerURLs "
        f"of type {wanted}"
    )


def ids_of(peer_urls: Sequence[str], token: str) -> tuple[int, int]:
    """Return the cluster id and the member id that etcd gives a new cluster of one.

    As in etcd's `membership.NewMember` and `RaftCluster.genID`: the first eight bytes of a hash.
    """
    member = _first_bytes("".join(sorted(peer_urls)).encode() + token.encode())
    return int.from_bytes(_first_bytes(member)), int.from_bytes(member)


def _first_bytes(data: bytes) -> bytes:
    return sha1(data, usedforsecurity=False).digest()[:8]
