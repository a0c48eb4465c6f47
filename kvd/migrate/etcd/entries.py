"""The entries of etcd's log, as requests to the v2 store.

entry of type 0   nothing; or a Request; or an InternalRaftRequest: {2: a Request}, {1300: the
                  cluster's version}, {1301: a member's attributes}, or a request of the v3 API
entry of type 1   ConfChange {2: 0 add, 1 remove, 2 update, 3 add learner; 3: node, 4: JSON}
Request           {2: method, 3: path, 4: value, 5: dir, 6: prevValue, 7: prevIndex,
                  8: prevExist, 9: expiration ns, 12: recursive, 15: time ns, 17: refresh}
"""

from __future__ import annotations

import json
from typing import NamedTuple

from kvd.migrate.errors import Damaged
from kvd.migrate.etcd.log import Entry
from kvd.migrate.etcd.protobuf import BYTES, VARINT, Malformed, data, decode, number, signed

METHODS = frozenset((b"PUT", b"POST", b"DELETE", b"SYNC", b"QGET"))
ADD, REMOVE, UPDATE, ADD_LEARNER = range(4)

_NORMAL, _CONFIGURATION = 0, 1
_REQUEST = {
    **dict.fromkeys((1, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17), VARINT),
    **dict.fromkeys((2, 3, 4, 6), BYTES),
}
_RAFT_REQUEST = {1: VARINT, 2: BYTES, 1300: BYTES, 1301: BYTES}
_CHANGE = {1: VARINT, 2: VARINT, 3: VARINT, 4: BYTES}


class Request(NamedTuple):
    """A request to the v2 store; `prev_exist` is None where it was not given."""

    method: bytes
    path: bytes
    value: bytes = b""
    is_dir: bool = False
    prev_value: bytes = b""
    prev_index: int = 0
    prev_exist: bool | None = None
    expiration_ns: int = 0
    recursive: bool = False
    time_ns: int = 0
    refresh: bool = False


class MemberChange(NamedTuple):
    """A change of the cluster's members."""

    kind: int
    node: int
    is_promotion: bool


class ClusterVersion(NamedTuple):
    """The version of the cluster, set as etcd 3.5 does."""

    version: bytes


class MemberAttributes(NamedTuple):
    """The attributes of a member (its name and URLs), set as etcd 3.5 does."""

    node: int


class OfV3(NamedTuple):
    """A request of the v3 API, which changes nothing in the v2 store."""


Asked = Request | MemberChange | ClusterVersion | MemberAttributes | OfV3 | None


def asked(entry: Entry) -> Asked:
    """Return the request in an entry, None for nothing.

    Raises:
        Damaged: it is nothing that etcd writes.
    """
    try:
        if entry.kind == _NORMAL:
            return _normal(entry.data) if entry.data else None
        return _change(entry)
    except Malformed as error:
        raise Damaged.at(*entry.place, f"entry {entry.number}: {error}") from None


def _normal(message: bytes) -> Asked:
    outer = decode(message, {2: BYTES})
    method = data(outer, 2)
    if method in METHODS:
        return _request(message)
    fields = decode(message, _RAFT_REQUEST)
    if 2 in fields:
        return _request(method)
    if 1300 in fields:
        return ClusterVersion(data(decode(data(fields, 1300), {1: BYTES}), 1))
    if 1301 in fields:
        attributes = decode(data(fields, 1301), {1: VARINT, 2: BYTES})
        return MemberAttributes(number(attributes, 1))
    return OfV3()


def _request(message: bytes) -> Request:
    fields = decode(message, _REQUEST)
    method = data(fields, 2)
    if method not in METHODS:
        raise Malformed(f"a request of the method {method!r}")
    return Request(
        method=method,
        path=data(fields, 3),
        value=data(fields, 4),
        is_dir=bool(number(fields, 5)),
        prev_value=data(fields, 6),
        prev_index=number(fields, 7),
        prev_exist=bool(number(fields, 8)) if 8 in fields else None,
        expiration_ns=signed(fields, 9),
        recursive=bool(number(fields, 12)),
        time_ns=signed(fields, 15),
        refresh=bool(number(fields, 17)),
    )


def _change(entry: Entry) -> MemberChange:
    if entry.kind != _CONFIGURATION:
        raise Malformed("a change of several members at once")
    fields = decode(entry.data, _CHANGE)
    try:
        context = json.loads(data(fields, 4) or b"{}")
    except ValueError as error:
        raise Malformed(f"a member that is no JSON: {error}") from None
    is_promotion = isinstance(context, dict) and context.get("isPromote") is True
    return MemberChange(number(fields, 2), number(fields, 3), is_promotion)
