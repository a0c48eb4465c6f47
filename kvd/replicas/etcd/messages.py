"""The messages and calls of etcd's v3 API that the log needs; numbers as in etcd's rpc.proto. Pure.

Fields that are of no use here are left out: they are never sent, and skipped when received.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvd.replicas.etcd.protobuf import Unsigned, at

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Method(Generic[T]):
    """A call: its path, and the type of its response."""

    path: str
    response: type[T]


@dataclass(frozen=True, slots=True)
class ResponseHeader:
    cluster_id: int = field(default=0, metadata=at(1, Unsigned))
    member_id: int = field(default=0, metadata=at(2, Unsigned))
    revision: int = field(default=0, metadata=at(3))


NO_HEADER = ResponseHeader()


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: bytes = field(default=b"", metadata=at(1))
    create_revision: int = field(default=0, metadata=at(2))
    mod_revision: int = field(default=0, metadata=at(3))
    value: bytes = field(default=b"", metadata=at(5))
    lease: int = field(default=0, metadata=at(6))


NO_KEY = KeyValue()

DELETED = 1
"""The type of an event; 0 is a put."""


@dataclass(frozen=True, slots=True)
class Event:
    type: int = field(default=0, metadata=at(1))
    kv: KeyValue = field(default=NO_KEY, metadata=at(2))


# KV


@dataclass(frozen=True, slots=True)
class RangeRequest:
    key: bytes = field(default=b"", metadata=at(1))
    range_end: bytes = field(default=b"", metadata=at(2))
    limit: int = field(default=0, metadata=at(3))
    revision: int = field(default=0, metadata=at(4))


@dataclass(frozen=True, slots=True)
class RangeResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    kvs: tuple[KeyValue, ...] = field(default=(), metadata=at(2, KeyValue))
    more: bool = field(default=False, metadata=at(3))


@dataclass(frozen=True, slots=True)
class PutRequest:
    key: bytes = field(default=b"", metadata=at(1))
    value: bytes = field(default=b"", metadata=at(2))
    lease: int = field(default=0, metadata=at(3))


@dataclass(frozen=True, slots=True)
class PutResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))


@dataclass(frozen=True, slots=True)
class DeleteRangeRequest:
    key: bytes = field(default=b"", metadata=at(1))
    range_end: bytes = field(default=b"", metadata=at(2))


@dataclass(frozen=True, slots=True)
class DeleteRangeResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    deleted: int = field(default=0, metadata=at(2))


@dataclass(frozen=True, slots=True)
class RequestOp:
    """One of them is set."""

    range: RangeRequest | None = field(default=None, metadata=at(1, RangeRequest))
    put: PutRequest | None = field(default=None, metadata=at(2, PutRequest))
    delete: DeleteRangeRequest | None = field(default=None, metadata=at(3, DeleteRangeRequest))


@dataclass(frozen=True, slots=True)
class ResponseOp:
    range: RangeResponse | None = field(default=None, metadata=at(1, RangeResponse))
    put: PutResponse | None = field(default=None, metadata=at(2, PutResponse))
    delete: DeleteRangeResponse | None = field(default=None, metadata=at(3, DeleteRangeResponse))


VERSION, CREATE_REVISION, MOD_REVISION, VALUE = range(4)
"""Targets of a comparison."""


@dataclass(frozen=True, slots=True)
class Compare:
    """Equality of a key's target with the field of the same name; `result` 0 means equal."""

    result: int = field(default=0, metadata=at(1))
    target: int = field(default=VERSION, metadata=at(2))
    key: bytes = field(default=b"", metadata=at(3))
    version: int = field(default=0, metadata=at(4))
    create_revision: int = field(default=0, metadata=at(5))
    mod_revision: int = field(default=0, metadata=at(6))
    value: bytes = field(default=b"", metadata=at(7))


@dataclass(frozen=True, slots=True)
class TxnRequest:
    compare: tuple[Compare, ...] = field(default=(), metadata=at(1, Compare))
    success: tuple[RequestOp, ...] = field(default=(), metadata=at(2, RequestOp))
    failure: tuple[RequestOp, ...] = field(default=(), metadata=at(3, RequestOp))


@dataclass(frozen=True, slots=True)
class TxnResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    succeeded: bool = field(default=False, metadata=at(2))
    responses: tuple[ResponseOp, ...] = field(default=(), metadata=at(3, ResponseOp))


@dataclass(frozen=True, slots=True)
class CompactionRequest:
    revision: int = field(default=0, metadata=at(1))


@dataclass(frozen=True, slots=True)
class CompactionResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))


# Watch


@dataclass(frozen=True, slots=True)
class WatchCreateRequest:
    """`fragment` splits what would exceed the size of a message of gRPC."""

    key: bytes = field(default=b"", metadata=at(1))
    range_end: bytes = field(default=b"", metadata=at(2))
    start_revision: int = field(default=0, metadata=at(3))
    fragment: bool = field(default=False, metadata=at(8))


@dataclass(frozen=True, slots=True)
class WatchRequest:
    create: WatchCreateRequest | None = field(default=None, metadata=at(1, WatchCreateRequest))


@dataclass(frozen=True, slots=True)
class WatchResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    watch_id: int = field(default=0, metadata=at(2))
    created: bool = field(default=False, metadata=at(3))
    canceled: bool = field(default=False, metadata=at(4))
    compact_revision: int = field(default=0, metadata=at(5))
    cancel_reason: str = field(default="", metadata=at(6))
    events: tuple[Event, ...] = field(default=(), metadata=at(11, Event))


# Lease


@dataclass(frozen=True, slots=True)
class LeaseGrantRequest:
    ttl_s: int = field(default=0, metadata=at(1))
    id: int = field(default=0, metadata=at(2))


@dataclass(frozen=True, slots=True)
class LeaseGrantResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    id: int = field(default=0, metadata=at(2))
    ttl_s: int = field(default=0, metadata=at(3))


@dataclass(frozen=True, slots=True)
class LeaseRevokeRequest:
    id: int = field(default=0, metadata=at(1))


@dataclass(frozen=True, slots=True)
class LeaseRevokeResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))


@dataclass(frozen=True, slots=True)
class LeaseKeepAliveRequest:
    id: int = field(default=0, metadata=at(1))


@dataclass(frozen=True, slots=True)
class LeaseKeepAliveResponse:
    """`ttl_s` is 0 when the lease has ended."""

    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    id: int = field(default=0, metadata=at(2))
    ttl_s: int = field(default=0, metadata=at(3))


# Maintenance, Auth


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Of the member that receives it."""


@dataclass(frozen=True, slots=True)
class StatusResponse:
    """`errors` names alarms; `quota` is 0 before etcd 3.6."""

    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    version: str = field(default="", metadata=at(2))
    allocated: int = field(default=0, metadata=at(3))
    leader: int = field(default=0, metadata=at(4, Unsigned))
    errors: tuple[str, ...] = field(default=(), metadata=at(8, str))
    used: int = field(default=0, metadata=at(9))
    is_learner: bool = field(default=False, metadata=at(10))
    quota: int = field(default=0, metadata=at(12))


@dataclass(frozen=True, slots=True)
class AuthenticateRequest:
    name: str = field(default="", metadata=at(1))
    password: str = field(default="", metadata=at(2))


@dataclass(frozen=True, slots=True)
class AuthenticateResponse:
    header: ResponseHeader = field(default=NO_HEADER, metadata=at(1))
    token: str = field(default="", metadata=at(2))


RANGE = Method("/etcdserverpb.KV/Range", RangeResponse)
PUT = Method("/etcdserverpb.KV/Put", PutResponse)
DELETE_RANGE = Method("/etcdserverpb.KV/DeleteRange", DeleteRangeResponse)
TXN = Method("/etcdserverpb.KV/Txn", TxnResponse)
COMPACT = Method("/etcdserverpb.KV/Compact", CompactionResponse)
WATCH = Method("/etcdserverpb.Watch/Watch", WatchResponse)
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", LeaseGrantResponse)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", LeaseRevokeResponse)
LEASE_KEEP_ALIVE = Method("/etcdserverpb.Lease/LeaseKeepAlive", LeaseKeepAliveResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", StatusResponse)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", AuthenticateResponse)
