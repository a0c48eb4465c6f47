"""The log of several replicas in an etcd v3 cluster: `kvd.replicas.engine.Engine` by transactions.

The fence of an append is one transaction:

    if    create_revision(leader) = epoch and value(head) = (seq - 1, prev_chain)
    then  put log/seq, put head
    else  get log/seq, get leader, get head

An epoch never returns and `head` only grows, so a failure of the fence is final, and a duplicate
that comes late fails it. What an earlier attempt without a response has done is read from the slot.
"""

import asyncio
import secrets

from kvd.replicas.engine import (
    SECRET_BYTES,
    Access,
    Candidate,
    End,
    Engine,
    EngineFull,
    Fenced,
    Lead,
    Meta,
    OtherHistory,
    OutcomeUnknown,
    Room,
)
from kvd.replicas.etcd import layout
from kvd.replicas.etcd.client import EtcdClient, NoSpace
from kvd.replicas.etcd.grpc_stream import (
    FAILED_PRECONDITION,
    NOT_FOUND,
    OUT_OF_RANGE,
    GrpcError,
)
from kvd.replicas.etcd.layout import PART_BYTES, PARTS_MAX, WHOLE, Keys
from kvd.replicas.etcd.messages import (
    COMPACT,
    CREATE_REVISION,
    DELETE_RANGE,
    LEASE_GRANT,
    LEASE_KEEP_ALIVE,
    LEASE_REVOKE,
    PUT,
    RANGE,
    TXN,
    VALUE,
    VERSION,
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    KeyValue,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    TxnResponse,
)
from kvd.replicas.etcd.tail import Items, Tail
from kvd.replicas.etcd.url import EtcdUrl

QUOTA_BYTES = 1 << 31
"""Etcd's default, for versions that do not tell theirs."""
FULL_PAUSE_S = 0.2
LEASE_S_MIN = 2
"""Etcd makes no lease shorter than this, by its own election timeout."""


class EtcdLog(Engine):
    """The engine of one replica; `Engine` says what each call promises."""

    def __init__(
        self,
        url: EtcdUrl,
        access: Access | None = None,
        *,
        lease_s: int = 3,
        quota_bytes: int = QUOTA_BYTES,
    ) -> None:
        self._client = EtcdClient(url, access)
        self._keys = Keys(url.prefix)
        self._lease_s = max(lease_s, LEASE_S_MIN)
        self._quota_bytes = quota_bytes

    async def open(
        self, cluster_id: int, seq: int, chain: bytes, *, made_by: str, made_at_ns: int
    ) -> Meta:
        keys = self._keys
        meta = Meta(cluster_id, secrets.token_bytes(SECRET_BYTES), made_by, made_at_ns)
        response = await self._write(
            TxnRequest(
                compare=(Compare(target=VERSION, key=keys.meta),),
                success=(
                    _put(keys.meta, layout.encode_meta(meta)),
                    _put(keys.head, layout.encode_head(seq, chain)),
                ),
                failure=(_get(keys.meta), _get(keys.head)),
            )
        )
        if response.succeeded:
            return meta
        found, head = _ranges(response)
        layout.decode_head(head)
        return layout.decode_meta(found[0].value)

    async def campaign(self, me: Candidate) -> Lead | None:
        # An id of our own makes the grant a request that may be sent again.
        lease = secrets.randbits(62) + 1
        try:
            await self._client.call(LEASE_GRANT, LeaseGrantRequest(self._lease_s, lease))
        except NoSpace as full:
            raise EngineFull(str(full)) from None
        except GrpcError as error:
            if error.code != FAILED_PRECONDITION:  # else it was granted by an earlier attempt
                raise
        value = layout.encode_leader(me, lease)
        leader = self._keys.leader
        put = RequestOp(put=PutRequest(leader, value, lease))
        try:
            response = await self._write(
                TxnRequest(
                    compare=(Compare(target=CREATE_REVISION, key=leader),),
                    success=(put,),
                    failure=(_get(leader),),
                )
            )
        except GrpcError as error:
            if error.code != NOT_FOUND:
                raise
            return None  # the lease has ended meanwhile
        if response.succeeded:
            return Lead(response.header.revision, lease)
        (found,) = _ranges(response)
        if found and found[0].value == value:
            return Lead(found[0].create_revision, lease)
        await self.revoke(lease)
        return None

    async def append(
        self, epoch: int, seq: int, prev_chain: bytes, chain: bytes, payload: bytes
    ) -> None:
        keys = self._keys
        slot = _Slot(keys, epoch, seq, prev_chain, chain)
        slot.value = WHOLE + payload
        if len(payload) > PART_BYTES and await self._append_parts(slot, payload):
            return
        put = (
            _put(keys.frame(seq), slot.value),
            _put(keys.head, layout.encode_head(seq, chain)),
        )
        txn = TxnRequest(slot.fence, put, slot.look)
        is_unsure = False
        while True:
            try:
                response, was_unsure = await self._client.settle(TXN, txn)
                is_unsure |= was_unsure
                if response.succeeded or slot.is_written(response, is_unsure=is_unsure):
                    return
            except NoSpace as full:
                is_unsure |= full.is_unsure
                if not is_unsure:
                    raise EngineFull(str(full)) from None
                # The attempt without a response may have been written, or may yet be.
                if slot.is_written(await self._write(TxnRequest(success=slot.look))):
                    return
            await asyncio.sleep(FULL_PAUSE_S)

    async def _append_parts(self, slot: "_Slot", payload: bytes) -> bool:
        """Write the parts of a payload, each under the fence of its frame.

        Returns whether the frame is in the log already.
        """
        starts = range(0, len(payload), PART_BYTES)
        if len(starts) > PARTS_MAX:
            raise ValueError(f"a frame of {len(payload)} bytes")
        slot.value = layout.encode_parts(len(starts), slot.chain)
        place = self._keys.parts(slot.seq, slot.chain)
        for number, start in enumerate(starts):
            put = _put(place + b"%03d" % number, payload[start : start + PART_BYTES])
            try:
                response = await self._write(TxnRequest(slot.fence, (put,), slot.look))
            except NoSpace as full:
                raise EngineFull(str(full)) from None
            if not response.succeeded:
                return slot.is_written(response)
        return False

    def tail(self, after: int) -> Items:
        return Tail(self._client, self._keys, after).items()

    async def end(self) -> End:
        response = await self._client.call(RANGE, RangeRequest(self._keys.head))
        return layout.decode_head(response.kvs)

    async def confirm(self, epoch: int) -> bool:
        response = await self._client.call(RANGE, RangeRequest(self._keys.leader))
        return bool(response.kvs) and response.kvs[0].create_revision == epoch

    async def renew(self, lead: Lead) -> bool:
        request = LeaseKeepAliveRequest(lead.lease)
        response = await self._client.call(LEASE_KEEP_ALIVE, request)
        await self._client.go_to_leader()
        return response.ttl_s > 0

    async def resign(self, lead: Lead) -> None:
        await self.revoke(lead.lease)

    async def revoke(self, lease: int) -> None:
        try:
            await self._client.call(LEASE_REVOKE, LeaseRevokeRequest(lease))
        except GrpcError as error:
            if error.code != NOT_FOUND:
                raise

    async def trim(self, below: int) -> None:
        below = min(below, (await self.end()).seq)
        keys = self._keys
        ranges = ((keys.log, keys.frame(below)), (keys.part, keys.parts(below)))
        deletes = tuple(RequestOp(delete=DeleteRangeRequest(*span)) for span in ranges)
        response = await self._write(TxnRequest(success=deletes))
        try:
            await self._client.call(COMPACT, CompactionRequest(response.header.revision))
        except GrpcError as error:
            if error.code != OUT_OF_RANGE:  # else it is compacted up to there
                raise

    async def room(self) -> Room:
        while not (statuses := await self._client.statuses()):
            await asyncio.sleep(FULL_PAUSE_S)
        return Room(
            max(status.used for status in statuses),
            max(status.allocated for status in statuses),
            min((status.quota for status in statuses if status.quota), default=self._quota_bytes),
            any("NOSPACE" in text for status in statuses for text in status.errors),
        )

    async def report(self, replica: int, document: bytes) -> None:
        try:
            await self._client.call(PUT, PutRequest(self._keys.replica(replica), document))
        except NoSpace as full:
            raise EngineFull(str(full)) from None

    async def reports(self) -> dict[int, bytes]:
        keys = self._keys
        response = await self._client.call(RANGE, RangeRequest(keys.replicas, keys.replicas_end))
        return {keys.replica_of(pair.key): pair.value for pair in response.kvs}

    async def forget(self, replica: int) -> None:
        request = DeleteRangeRequest(self._keys.replica(replica))
        await self._client.call(DELETE_RANGE, request)

    async def close(self) -> None:
        self._client.close()

    async def _write(self, request: TxnRequest) -> TxnResponse:
        return await self._client.call(TXN, request)


class _Slot:
    """The place of one frame: the fence before it, and what a look at it means."""

    def __init__(self, keys: Keys, epoch: int, seq: int, prev_chain: bytes, chain: bytes) -> None:
        self.seq = seq
        self.chain = chain
        self.value = b""
        self._epoch = epoch
        self._before = End(seq - 1, prev_chain)
        head = layout.encode_head(seq - 1, prev_chain)
        self.fence = (
            Compare(target=CREATE_REVISION, key=keys.leader, create_revision=epoch),
            Compare(target=VALUE, key=keys.head, value=head),
        )
        self.look = (_get(keys.frame(seq)), _get(keys.leader), _get(keys.head))

    def is_written(self, response: TxnResponse, *, is_unsure: bool = False) -> bool:
        """Whether the frame is in the log; False when the fence holds, so that it may yet be.

        Raises:
            Fenced, OutcomeUnknown, OtherHistory: see there.
        """
        slot, leader, found = _ranges(response)
        if slot and slot[0].value == self.value:
            return True
        head = layout.decode_head(found)
        if head == End(self.seq, self.chain):
            return True
        if head.seq > self.seq and not slot and is_unsure:
            raise OutcomeUnknown(f"frame {self.seq} was trimmed before its append had a response")
        epoch = leader[0].create_revision if leader else 0
        if head.seq >= self.seq or epoch != self._epoch:
            raise Fenced(f"the log ends with frame {head.seq}, the epoch is {epoch}")
        if head != self._before:
            raise OtherHistory(
                f"the log ends with frame {head.seq}, chain {head.chain.hex()}; expected frame "
                f"{self._before.seq}, chain {self._before.chain.hex()}"
            )
        return False


def _put(key: bytes, value: bytes) -> RequestOp:
    return RequestOp(put=PutRequest(key, value))


def _get(key: bytes) -> RequestOp:
    return RequestOp(range=RangeRequest(key))


def _ranges(response: TxnResponse) -> list[tuple[KeyValue, ...]]:
    """The keys that each `get` of a transaction found."""
    return [answer.range.kvs if answer.range else () for answer in response.responses]
