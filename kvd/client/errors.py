"""The errors of the client: what a server refused, and what could not be found out.

    KvdError
      ApiError              the server's refusal; a class for each code that programs tell apart
      TransportError        no answer, and nothing has been changed by this request
        Timeout             the same, for want of time
      OutcomeUnknown        a write was sent and no answer came: it may have happened, now or later
      ClusterChanged        another store answers under the same address
      WatchTimeout          a watch has no event yet; it has lost none and goes on
      NotSupported          an extra of kvd, asked of a server that does not have it

Codes and messages are etcd's (its v2 `errors.go`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_HISTORY = re.compile(r"\[(\d+)/(\d+)\]")


class KvdError(Exception):
    """Whatever the client raises.

    Example:
        >>> from kvd.client import KvdError
        >>> try:
        ...     value = client.get("/none").value
        ... except KvdError as error:
        ...     print(error)
        100: Key not found (/none)
    """


class TransportError(KvdError):
    """No server answered, and nothing has been changed: it was a read, or no byte was sent.

    Attributes:
        failures: where no endpoint answered a request, the last error of each, by its address.

    Example:
        >>> from kvd.client import Client, TransportError
        >>> with Client("http://127.0.0.1:1", timeout=0.05) as nowhere:
        ...     try:
        ...         value = nowhere.get("/a").value
        ...     except TransportError as error:
        ...         print(str(error).partition(":1 in")[0])
        no answer from 127.0.0.1
    """

    failures: Mapping[str, Exception] = MappingProxyType({})


class Timeout(TransportError):
    """No server answered in time, and nothing has been changed.

    Example:
        >>> from kvd.client import Timeout
        >>> try:
        ...     value = client.get_or("/app/port", "8080")
        ... except Timeout:
        ...     value = "8080"
    """


class OutcomeUnknown(KvdError):
    """A write was sent and no answer came: it may have happened, may happen later, or never.

    So it is where the answer cannot be read, or comes from a proxy that had none itself (502, 504).

    Example:
        >>> from kvd.client import CompareFailed, OutcomeUnknown
        >>> node = client.set("/state", "open").node
        >>> for attempt in range(3):  # with a condition it can be repeated
        ...     try:
        ...         event = client.set("/state", "done", if_index=node.modified_index)
        ...         break
        ...     except OutcomeUnknown:
        ...         continue
        ...     except CompareFailed:  # one of them has happened, or another program was faster
        ...         break
    """


class ClusterChanged(KvdError):
    """Another store answers than before: its indexes mean nothing to what was read earlier.

    Attributes:
        old, new: the ids of the stores (`X-Etcd-Cluster-Id`).

    Example:
        >>> from kvd.client import ClusterChanged
        >>> error = ClusterChanged("7e27652122e8b2ae", "cdf818194e3a8c32")
        >>> error.old, error.new
        ('7e27652122e8b2ae', 'cdf818194e3a8c32')
    """

    def __init__(self, old: str, new: str) -> None:
        super().__init__(old, new)
        self.old = old
        self.new = new

    def __str__(self) -> str:
        return f"the store is another one: {self.new}, was {self.old}"


class WatchTimeout(KvdError):
    """No event came in the seconds of `timeout`; the next call goes on where this one ended.

    Example:
        >>> from kvd.client import WatchTimeout
        >>> with client.watch("/quiet", timeout=0.01) as watch:
        ...     try:
        ...         event = next(watch)
        ...     except WatchTimeout as error:
        ...         print(error)
        no event in 0.01 s
    """


class NotSupported(KvdError):
    """The server does not have this extra of kvd: it is etcd, or runs with `--extras=false`.

    Example:
        >>> from kvd.client import NotSupported, Op
        >>> try:
        ...     events = client.txn([Op.set("/both/a", "1"), Op.set("/both/b", "1")])
        ... except NotSupported:  # one after the other, then
        ...     event = client.set("/both/a", "1"), client.set("/both/b", "1")
    """


class ApiError(KvdError):
    """A server's refusal.

    Attributes:
        code: etcd's `errorCode`; 0 where the answer had none.
        message: what the code means.
        cause: what it was about, mostly a key.
        index: the store's index when it refused.
        status: the HTTP status.

    Example:
        >>> from kvd.client import ApiError
        >>> try:
        ...     event = client.set("/a/b", "1", ttl=-5)
        ... except ApiError as error:
        ...     print(error.code, error.status)
        202 400
    """

    def __init__(self, code: int, message: str, cause: str, index: int, status: int) -> None:
        super().__init__(code, message, cause, index, status)
        self.code = code
        self.message = message
        self.cause = cause
        self.index = index
        self.status = status

    def __str__(self) -> str:
        about = f" ({self.cause})" if self.cause else ""
        return f"{self.code or self.status}: {self.message}{about}"


class KeyNotFound(ApiError, KeyError):
    """There is no such key (100).

    Example:
        >>> from kvd.client import KeyNotFound
        >>> try:
        ...     gone = client.delete("/none")
        ... except KeyNotFound as error:
        ...     print(error.code, error.cause)
        100 /none
    """

    __str__ = ApiError.__str__


class CompareFailed(ApiError):
    """The key is not as the condition says (101).

    Example:
        >>> from kvd.client import CompareFailed
        >>> event = client.set("/cas", "1")
        >>> try:
        ...     event = client.set("/cas", "3", if_value="2")
        ... except CompareFailed as error:
        ...     print(error.cause)
        [2 != 1]
    """


class NotAFile(ApiError):
    """The key is a directory (102).

    Example:
        >>> from kvd.client import NotAFile
        >>> event = client.mkdir("/a-directory")
        >>> try:
        ...     event = client.set("/a-directory", "1")
        ... except NotAFile as error:
        ...     print(error.code)
        102
    """


class NotADirectory(ApiError):
    """The key, or one above it, is a file (104).

    Example:
        >>> from kvd.client import NotADirectory
        >>> event = client.set("/a-file", "1")
        >>> try:
        ...     tree = client.ls("/a-file")
        ... except NotADirectory as error:
        ...     print(error.code)
        104
    """


class KeyExists(ApiError):
    """The key is there already (105).

    Example:
        >>> from kvd.client import KeyExists
        >>> event = client.set("/taken", "1")
        >>> try:
        ...     event = client.create("/taken", "2")
        ... except KeyExists as error:
        ...     print(error.code)
        105
    """


class RootReadOnly(ApiError):
    """The root cannot be changed (107).

    Example:
        >>> from kvd.client import RootReadOnly
        >>> try:
        ...     gone = client.delete("/", recursive=True)
        ... except RootReadOnly as error:
        ...     print(error.code)
        107
    """


class DirectoryNotEmpty(ApiError):
    """The directory has children (108).

    Example:
        >>> from kvd.client import DirectoryNotEmpty
        >>> event = client.set("/full/key", "1")
        >>> try:
        ...     gone = client.delete("/full", dir=True)
        ... except DirectoryNotEmpty as error:
        ...     print(error.code)
        108
    """


class Unauthorized(ApiError):
    """The user may not do this, or the password is wrong (110).

    Example:
        >>> from kvd.client import Unauthorized
        >>> try:
        ...     value = client.get_or("/secret", None)
        ... except Unauthorized:
        ...     value = None
    """


class BadRequest(ApiError):
    """A parameter makes no sense (200 to 299).

    Example:
        >>> from kvd.client import BadRequest
        >>> try:
        ...     event = client.set("/a", "1", if_value="")
        ... except BadRequest as error:
        ...     print(error.code)
        201
    """


class ServerRefused(ApiError):
    """The server cannot do it now, and has not: no room on its disk, too much to do (300, 503).

    A proxy without an answer to a read (502, 504) is such a server as well.

    Example:
        >>> from kvd.client import ServerRefused
        >>> try:
        ...     event = client.set("/report", "done")
        ... except ServerRefused as error:
        ...     print("later:", error.cause)
    """


class HistoryLost(ApiError):
    """The server no longer has the events that a watch is to begin with (401).

    Attributes:
        wanted: the index asked for.
        first: the first one that it still has; 0 where it did not say.

    Example:
        >>> from kvd.client import HistoryLost
        >>> error = HistoryLost(401, "The event in requested index is outdated", "[8/3]", 10, 400)
        >>> error.first, error.wanted
        (8, 3)
    """

    def __init__(self, code: int, message: str, cause: str, index: int, status: int) -> None:
        super().__init__(code, message, cause, index, status)
        found = _HISTORY.search(cause)
        self.first, self.wanted = (int(found[1]), int(found[2])) if found else (0, 0)
