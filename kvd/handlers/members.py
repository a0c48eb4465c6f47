"""`/v2/members` and everything below it: one member, and no way to have others."""

from __future__ import annotations

import tornado.web

from kvd.handlers.base import AdminHandler
from kvd.v2.documents import members
from kvd.v2.documents.members import Member, PutMember, read_id, read_peer_urls
from kvd.v2.errors import RouteError


class Members(AdminHandler):
    """All members, the leader (below it, by that name), and the one with the id below it."""

    allow: tuple[str, ...] = ("GET", "POST", "DELETE", "PUT")
    for_all = ("GET",)
    # etcd reads any body; here one that is no JSON is gone through byte by byte, to say why.
    body_bytes_max = 16 << 10

    @property
    def member(self) -> Member:
        """The one member as it is now."""
        return self.context.member.as_changed(self.authorizer.accounts.view)

    def get(self, path: str) -> None:
        """Answer the list, or the leader."""
        match path.removeprefix("/"):
            case "":
                self._json(self.member.list_body())
            case "leader":
                self._json(self.member.body())
            case _:
                raise RouteError(404, "Not found")

    def post(self, _: str) -> None:
        """Refuse another member."""
        raise members.refuse_another(self.member, self._peer_urls())

    async def put(self, path: str) -> None:
        """Change the peer URLs of the one member."""
        member_id = self._id(path)
        command = PutMember(member_id, self._peer_urls())
        if member_id != self.member.member_id:
            raise RouteError(404, f"No such member: {member_id:x}")
        await self.submit_document(command)

    def delete(self, path: str) -> None:
        """Refuse to remove a member."""
        raise members.refuse_removal(self.member, self._id(path))

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


ROUTES = [(r"/v2/members(|/.*)", Members)]
