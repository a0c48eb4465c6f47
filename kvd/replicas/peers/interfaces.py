"""The parts that the links of a replica connect, as they are used there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from kvd.replicas.links import Hello


class AnyLink(Protocol):
    """A link as it is used here (links.py)."""

    peer: Hello

    def send(self, name: str, *fields: object) -> None:
        """Queue a message; LinkError if the link has ended."""

    async def receive(self) -> tuple[str, list[Any]]:
        """Return the next message; LinkError if the link has ended."""

    def close(self) -> None:
        """End the link."""


Serve = Callable[[Any], Awaitable[None]]


class Network(Protocol):
    """A way to the other replicas (network.py)."""

    async def dial(self, url: str) -> AnyLink:
        """Connect to a replica; LinkRefused if nothing listens there, LinkError if it fails."""

    async def listen(self, urls: Sequence[Any], serve: Serve) -> None:
        """Listen, and call `serve` with each link, which ends when it returns."""

    async def close(self) -> None:
        """Listen no more, and end all links that came from others."""


class Forwards(Protocol):
    """Receiver of the messages about commands (forwarding/forwarding.py)."""

    on_applied: Callable[[], object]

    def link_up(self, link: Any, epoch: int) -> None:
        """Use a link to the leader of an epoch."""

    def link_down(self, link: Any) -> None:
        """Use a link no more."""

    async def take_commands(self, link: Any, epoch: int, items: list[Any]) -> None:
        """Take forwarded commands."""

    def take_answer(self, name: str, fields: list[Any]) -> None:
        """Take what the leader says about forwarded commands."""


class Follower:
    """A replica that is linked to this one.

    Attributes:
        hello: Its id and versions.
        applied, durable: The last frame that it has applied, and the last on its disk; -1 before it
            has reported any.
        heard: When something came from it (the loop's time).
    """

    __slots__ = ("applied", "durable", "heard", "hello", "link")

    def __init__(self, link: AnyLink, now: float) -> None:
        self.link = link
        self.hello = link.peer
        self.applied = self.durable = -1
        self.heard = now
