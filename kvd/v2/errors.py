"""The errors of the etcd v2 API: the table of the key space, and the exceptions that carry them.

Numbers, texts and HTTP statuses are etcd's (server/etcdserver/api/v2error/error.go); nothing else
in kvd knows them.
"""

from __future__ import annotations

from typing import NamedTuple

KEY_NOT_FOUND = 100
COMPARE_FAILED = 101
NOT_A_FILE = 102
NOT_A_DIRECTORY = 104
KEY_EXISTS = 105
ROOT_READ_ONLY = 107
DIRECTORY_NOT_EMPTY = 108
UNAUTHORIZED = 110
PREV_VALUE_REQUIRED = 201
TTL_NOT_A_NUMBER = 202
INDEX_NOT_A_NUMBER = 203
INVALID_FIELD = 209
INVALID_FORM = 210
REFRESH_VALUE = 211
REFRESH_TTL_REQUIRED = 212
RAFT_INTERNAL = 300
EVENT_INDEX_CLEARED = 401


class _Error(NamedTuple):
    message: str
    status: int


TABLE = {
    KEY_NOT_FOUND: _Error("Key not found", 404),
    COMPARE_FAILED: _Error("Compare failed", 412),
    NOT_A_FILE: _Error("Not a file", 403),
    NOT_A_DIRECTORY: _Error("Not a directory", 400),
    KEY_EXISTS: _Error("Key already exists", 412),
    ROOT_READ_ONLY: _Error("Root is read only", 400),
    DIRECTORY_NOT_EMPTY: _Error("Directory not empty", 403),
    UNAUTHORIZED: _Error("The request requires user authentication", 401),
    PREV_VALUE_REQUIRED: _Error("PrevValue is Required in POST form", 400),
    TTL_NOT_A_NUMBER: _Error("The given TTL in POST form is not a number", 400),
    INDEX_NOT_A_NUMBER: _Error("The given index in POST form is not a number", 400),
    INVALID_FIELD: _Error("Invalid field", 400),
    INVALID_FORM: _Error("Invalid POST form", 400),
    REFRESH_VALUE: _Error("Value provided on refresh", 400),
    REFRESH_TTL_REQUIRED: _Error("A TTL must be provided on refresh", 400),
    RAFT_INTERNAL: _Error("Raft Internal Error", 500),
    EVENT_INDEX_CLEARED: _Error("The event in requested index is outdated and cleared", 400),
}


class ApiError(Exception):
    """The client's fault, or the disk's (300): answered in etcd's own format.

    `code` is a key of `TABLE`; `cause` is bytes, because it may quote a key or a value; `index` is
    the etcd index at which the request was refused, 0 where no index was looked at. `limit` names
    the limit that it met, if it is one of ours, for the metrics. `place` is, of a transaction, the
    condition (`when`) or the operation (`op`) that is refused, and which one, from 0.
    """

    place: tuple[str, int] | None = None

    def __init__(self, code: int, cause: bytes = b"", index: int = 0, limit: str = "") -> None:
        super().__init__(code, cause, index)
        self.code = code
        self.cause = cause
        self.index = index
        self.limit = limit


class RouteError(Exception):
    """An error of a route outside the key space: a status and a message, as `{"message":...}`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message
