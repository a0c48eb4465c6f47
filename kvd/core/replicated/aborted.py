"""Abort of a batch that the log of several members has not taken."""

from kvd.v2.errors import ApiError


class Aborted(Exception):
    """A batch that is not durable, or not known to be: nothing of it is visible here.

    Attributes:
        refusal: The response to its commands. None if it was not logged and never will be: its
            commands go back to the queue, behind the closed gate, to be decided elsewhere.
    """

    def __init__(self, refusal: ApiError | None = None) -> None:
        super().__init__()
        self.refusal = refusal
