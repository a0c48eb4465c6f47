"""Commands that change the members: their rules, with the texts and statuses of etcd 3.4."""

from __future__ import annotations

from typing import NamedTuple, assert_never

from kvd.storage.format.records import Document, Kind
from kvd.v2 import go_json
from kvd.v2.documents.decision import Decision, Documents, Reply
from kvd.v2.documents.members import (
    MEMBER,
    REMOVED,
    Member,
    is_removed,
    is_replica,
    registered,
)
from kvd.v2.errors import RouteError


class PutMember(NamedTuple):
    """Change the URLs of a member."""

    member_id: int
    peer_urls: tuple[str, ...]


class PublishMember(NamedTuple):
    """Register a replica as it describes itself; it replaces others at its peer URLs."""

    member_id: int
    name: str
    peer_urls: tuple[str, ...]
    client_urls: tuple[str, ...]


class AddMember(NamedTuple):
    """Announce a replica that is to come, with an id that no member has."""

    member_id: int
    peer_urls: tuple[str, ...]


class RemoveMember(NamedTuple):
    """Remove a member for ever."""

    member_id: int


Command = PutMember | PublishMember | AddMember | RemoveMember


def decide(state: Documents, command: Command) -> Decision:
    """Return what a command comes to.

    Raises:
        RouteError: it is refused.
    """
    match command:
        case PutMember():
            return _put(state, command)
        case PublishMember():
            return _publish(state, command)
        case AddMember():
            return _add(state, command)
        case RemoveMember():
            return _remove(state, command)
        case _:
            assert_never(command)


def publishing(state: Documents, own: Member) -> PublishMember | None:
    """Return what registers a replica; None if it is registered as it is, or was removed."""
    command = PublishMember(own.member_id, own.name, own.peer_urls, own.client_urls)
    document = state.document(MEMBER, own.shown_id)
    if document is not None and document.content in (REMOVED, own.content()):
        return None
    return command


def _put(state: Documents, command: PutMember) -> Decision:
    """Change the URLs of a replica, or of a server alone, of which the log has nothing else."""
    if is_removed(state, command.member_id):
        raise RouteError(500, "Internal Server Error")
    known = {one.member_id: one for one in registered(state)}
    member = known.pop(command.member_id, None)
    if member is None or not is_replica(state, command.member_id):
        content = go_json.encode({"peerURLs": command.peer_urls})
        return Decision([_document(command.member_id, content)], Reply(204))
    _require_free(list(known.values()), command.peer_urls)
    changed = member._replace(peer_urls=command.peer_urls)
    return Decision([_document(command.member_id, changed.content())], Reply(204))


def _publish(state: Documents, command: PublishMember) -> Decision:
    if is_removed(state, command.member_id):
        raise _gone(command.member_id)
    urls = set(command.peer_urls)
    replaced = [
        _document(one.member_id, None)
        for one in registered(state)
        if one.member_id != command.member_id and urls & set(one.peer_urls)
    ]
    member = Member(command.name, command.member_id, command.client_urls, command.peer_urls)
    return Decision([*replaced, _document(command.member_id, member.content())], Reply(204))


def _add(state: Documents, command: AddMember) -> Decision:
    _require_free(registered(state), command.peer_urls)
    member = Member("", command.member_id, (), command.peer_urls)
    return Decision([_document(command.member_id, member.content())], Reply(201, member.body()))


def _remove(state: Documents, command: RemoveMember) -> Decision:
    if is_removed(state, command.member_id):
        raise _gone(command.member_id)
    known = [one.member_id for one in registered(state)]
    if command.member_id not in known:
        raise RouteError(404, f"No such member: {command.member_id:x}")
    if len(known) == 1:
        raise RouteError(500, "Internal Server Error")
    return Decision([_document(command.member_id, REMOVED)], Reply(204))


def _require_free(members: list[Member], peer_urls: tuple[str, ...]) -> None:
    if any(set(peer_urls) & set(one.peer_urls) for one in members):
        raise RouteError(409, "membership: peerURL exists")


def _gone(member_id: int) -> RouteError:
    return RouteError(410, f"Member permanently removed: {member_id:x}")


def _document(member_id: int, content: bytes | None) -> Document:
    return Document(Kind.MEMBER, MEMBER, f"{member_id:x}", content)
