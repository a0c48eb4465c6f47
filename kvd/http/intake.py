"""Input of one connection, counted in the memory budget until it is served."""

from __future__ import annotations

from kvd.http.receiving import Receiving, Sender


class Intake:
    """Counted input of one connection, which each method gets as the sender.

    Attributes:
        ahead: bytes that have not been parsed.
        held: bytes of the present request's body that are kept.
    """

    __slots__ = ("_receiving", "ahead", "held")

    def __init__(self, receiving: Receiving) -> None:
        self._receiving = receiving
        self.ahead = 0
        self.held = 0

    def count_ahead(self, sender: Sender, size: int) -> bool:
        """Count unparsed bytes; return whether there is room for them."""
        self.ahead = size
        return self._receiving.take(sender, size)

    def release_ahead(self, sender: Sender) -> None:
        """Count the unparsed bytes no longer."""
        ahead, self.ahead = self.ahead, 0
        if ahead:
            if not self.held:
                self._receiving.forget(sender)
            self._receiving.give_back(ahead)

    def hold(self, sender: Sender, size: int) -> bool:
        """Count a piece that is kept until the request is served; return whether there is room."""
        self.held += size
        return self._receiving.take(sender, size)

    def release(self, sender: Sender) -> None:
        """Count the request no longer: nothing is kept of it."""
        held, self.held = self.held, 0
        if held:
            self._receiving.forget(sender)
            self._receiving.give_back(held)
