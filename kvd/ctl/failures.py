"""Errors of kvdctl: one line for the user, and an exit status.

0 to 5 are etcdctl's, 6 to 8 are kvdctl's own, 70 is a bug, 74 an output that fails. The verbs
that work on files have statuses of sysexits.h instead (`offline/`).
"""

from __future__ import annotations

import re

from kvd.client.errors import (
    ApiError,
    ClusterChanged,
    HistoryLost,
    KvdError,
    NotSupported,
    TransportError,
)
from kvd.lines import printable

USAGE = 1
UNREACHABLE = 2
UNKNOWN_VERB = 3
REFUSED = 4
UNHEALTHY = 5
DIFFERENT = 6
CONFLICT = 7
LOST = 8
BUG = 70
IO_ERROR = 74
INTERRUPTED = 130


class Failure(Exception):
    """The end of a verb.

    Attributes:
        text: what is written to standard error, without the newline at its end.
        status: the exit status.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.text = text
        self.status = status


def failure(message: str, status: int = USAGE) -> Failure:
    """Return a failure in kvdctl's own words: one line that begins with `kvdctl: `."""
    return Failure(printable(f"kvdctl: {message}"), status)


def explained(error: KvdError) -> Failure:
    """Return an error of the client as a failure in kvdctl's own words."""
    match error:
        case HistoryLost():
            gone = f"the events from {error.wanted} on" if error.wanted else "events"
            return failure(f"{gone} are gone, the history begins at {error.first}", LOST)
        case ClusterChanged():
            return failure(str(error), LOST)
        case NotSupported():
            return failure(str(error))
        case ApiError():
            return failure(f"{error} [{error.index}]", REFUSED)
        case TransportError():
            reason = re.sub(r"\[Errno -?\d+\] ", "", str(error))
            hint = "; --endpoints names other servers" if error.failures else ""
            return failure(reason + hint, UNREACHABLE)
    return failure(str(error), REFUSED)
