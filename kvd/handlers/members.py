"""`/v2/members` and everything below it: one member, or the replicas of its store.

A server alone has no way to have others. Replicas register themselves; a client may announce one,
change the peer URLs of one, and remove one for ever.
"""

from __future__ import annotations

import secrets

import tornado.web

from kvd.handlers.base import AdminHandler
from kvd.v2.documents import members
from kvd.v2.documents.member_commands import AddMember, PutMember, RemoveMember
from kvd.v2.documents.members import Member, read_id, read_peer_urls
from kvd.v2.errors import RouteError


class Members(AdminHandler):
    """All members, the leader (below it, by that name), and the one with the id below it."""

    allow: tuple[str, ...] = ("GET", "POST", "DELETE", "PUT")
    for_all = ("GET",)
    # etcd reads any body; here one that is no JSON is gone through byte by byte, to say why.
    body_bytes_max = 16 << 10

    @property
    def member(self) -> Member:
        """The member that this server is, as it is now."""
        return self.context.member.as_changed(self.authorizer.accounts.view)

    @property
    def is_alone(self) -> bool:
        """Whether there are no replicas."""
        return self.context.standing.engine is None

    def get(self, path: str) -> None:
        """Answer the list, or the leader."""
        match path.removeprefix("/"):
            case "":
                self._json(members.list_body(self.context.members()))
            case "leader":
                self._json(self._leader().body())
            case _:
                raise RouteError(404, "Not found")

    async def post(self, _: str) -> None:
        """Announce a replica; refuse another member of a server alone."""
        peer_urls = self._peer_urls()
        if self.is_alone:
            raise members.refuse_another(self.member, peer_urls)
        await self.submit_document(AddMember(_new_id(), peer_urls))

    async def put(self, path: str) -> None:
        """Change the peer URLs of a member."""
        member_id = self._id(path)
        command = PutMember(member_id, self._peer_urls())
        view = self.authorizer.accounts.view
        if self.is_alone:
            is_known = member_id == self.member.member_id
        else:  # one that was removed has an answer of its own
            is_known = view.document(members.MEMBER, f"{member_id:x}") is not None
        if not is_known:
            raise RouteError(404, f"No such member: {member_id:x}")
        await self.submit_document(command)

    async def delete(self, path: str) -> None:
        """Remove a replica; refuse to remove the one member of a server alone."""
        member_id = self._id(path)
        if self.is_alone:
            raise members.refuse_removal(self.member, member_id)
        await self.submit_document(RemoveMember(member_id))

    def _leader(self) -> Member:
        """Return the leader.

        Raises:
            RouteError: 503, there is none.
        """
        leader = self.context.standing.leader
        for member in self.context.members():
            if leader is not None and member.member_id == leader.member_id:
                return member
        raise RouteError(503, "During election")

    def _id(self, path: str) -> int:
        text = path.removeprefix("/")
        if not text:
            # etcd names no methods here.
            self.allow = ()
            raise tornado.web.HTTPError(405)
        return read_id(text)

    def _peer_urls(self) -> tuple[str, ...]:
        body = self.body
        types = self.request.headers.get_list("Content-Type")
        return read_peer_urls(types[0] if types else "", body)


def _new_id() -> int:
    return secrets.randbelow(2**64 - 1) + 1


ROUTES = [(r"/v2/members(|/.*)", Members)]
