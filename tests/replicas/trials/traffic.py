"""What the clients of a trial share: when they pause, which server they leave alone."""

import time
from collections import deque


class Traffic:
    """Orders of the trial to its clients.

    Attributes:
        is_hushed: Nothing is sent.
        avoided: The number of a server to which only those send that stay with it, and these only
            what concerns keys that were written since then.
        known: Keys that were acknowledged last, and that no client removes.
        resumed: When the last pause ended.
    """

    def __init__(self) -> None:
        self.is_hushed = False
        self.avoided: int | None = None
        self.known: deque[str] = deque(maxlen=100)
        self.resumed = 0.0

    def hush(self) -> None:
        self.is_hushed = True

    def resume_without(self, server: int) -> None:
        """Go on, and leave a server alone until `resume`."""
        self.avoided = server
        self.known.clear()
        self.resumed = time.monotonic()
        self.is_hushed = False

    def resume(self) -> None:
        self.is_hushed = False
        self.avoided = None
