"""The frames of the log in etcd, and its leaders, as they come.

Each round reads the frames that are missing by range, 64 a page, with leader and head of the same
revision, then watches from the revision after. The watch is a hint only: a frame out of order, an
end of the stream or a compaction starts a new round. A watch that has gone silent without an end is
found by a look at `head` and `leader` once a second: what it misses twice running starts a round at
another member.
"""

import asyncio
from collections.abc import AsyncGenerator

from kvd.replicas.engine import EngineError, Frame, Leadership, OtherHistory, Trimmed
from kvd.replicas.etcd import layout
from kvd.replicas.etcd.client import EtcdClient
from kvd.replicas.etcd.grpc_stream import GrpcError, Stream
from kvd.replicas.etcd.layout import Keys
from kvd.replicas.etcd.messages import (
    DELETED,
    RANGE,
    TXN,
    WATCH,
    Event,
    KeyValue,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from kvd.replicas.etcd.protobuf import decode, encode

PAGE_FRAMES = 64
PAGE_PARTS = 16
LOOK_S = 1.0
"""Between two looks at what a silent watch may miss."""
RETRY_S = 0.05

Items = AsyncGenerator[Frame | Leadership, None]


class _Again(Exception):
    """The watch cannot go on: a new round."""


class Tail:
    """One run over the log; `items` is to be called once."""

    def __init__(self, client: EtcdClient, keys: Keys, after: int) -> None:
        self._client = client
        self._keys = keys
        self._after = after
        self._returned: Leadership | None = None
        self._revision = 0
        """That of the last page: the watch continues there."""
        self._member = client.current

    async def items(self) -> Items:
        """As `Engine.tail`."""
        while True:
            async for item in self._missing():
                yield item
            try:
                async for item in self._watched():
                    yield item
            except (GrpcError, _Again):
                self._member = self._client.after(self._member)
                await asyncio.sleep(RETRY_S)

    async def _missing(self) -> Items:
        """The frames up to now, and the leadership."""
        keys = self._keys
        while True:
            page = RangeRequest(keys.frame(self._after + 1), keys.log_end, PAGE_FRAMES)
            gets = (page, RangeRequest(keys.leader), RangeRequest(keys.head))
            request = TxnRequest(success=tuple(RequestOp(range=get) for get in gets))
            response = await self._client.call(TXN, request)
            ranges = [answer.range for answer in response.responses if answer.range]
            frames, leader = ranges[0].kvs, ranges[1].kvs
            self._check(frames, layout.decode_head(ranges[2].kvs).seq)
            leadership = layout.decode_leader(leader, response.header.revision)
            for pair in frames:
                if leadership.lead and pair.mod_revision > leadership.revision:
                    for item in self._news(leadership):
                        yield item
                yield await self._frame(pair)
            if not ranges[0].more:
                break
        self._revision = response.header.revision
        for item in self._news(leadership):
            yield item

    def _check(self, frames: tuple[KeyValue, ...], end: int) -> None:
        """Refuse a page that does not continue the log."""
        if end < self._after:
            raise OtherHistory(f"the log ends with frame {end}, before frame {self._after}")
        first = self._keys.seq(frames[0].key) if frames else end + 1
        if first != self._after + 1:
            raise Trimmed(f"frame {self._after + 1} is gone: the log begins with frame {first}")

    def _news(self, leadership: Leadership) -> list[Leadership]:
        """The leadership, unless it is the last that was returned."""
        returned = self._returned
        if returned is not None and returned.lead == leadership.lead:
            return []
        self._returned = leadership
        return [leadership]

    async def _frame(self, pair: KeyValue) -> Frame:
        """The frame of a key, which is the next one."""
        seq = self._keys.seq(pair.key)
        if seq != self._after + 1:
            raise _Again
        payload = layout.decode_frame(pair.value)
        if isinstance(payload, layout.Parts):
            payload = await self._joined(seq, payload)
        self._after = seq
        return Frame(seq, payload, pair.mod_revision)

    async def _joined(self, seq: int, parts: layout.Parts) -> bytes:
        place = self._keys.parts(seq, parts.chain)
        found: list[bytes] = []
        while len(found) < parts.count:
            start = place + b"%03d" % len(found)
            request = RangeRequest(start, layout.end_of(place), PAGE_PARTS)
            page = (await self._client.call(RANGE, request)).kvs
            found += [pair.value for pair in page]
            if not page:
                raise Trimmed(f"frame {seq} was removed while it was read")
        return b"".join(found)

    async def _watched(self) -> Items:
        """Frames and leaderships from now on."""
        stream = await self._client.stream(WATCH, self._member)
        looking = asyncio.create_task(self._keep_looking(stream))
        try:
            create = WatchCreateRequest(
                self._keys.leader, self._keys.log_end, self._revision + 1, fragment=True
            )
            stream.send(encode(WatchRequest(create)))
            while True:
                response = decode(WatchResponse, await stream.receive())
                if response.canceled:
                    raise _Again
                for event in response.events:
                    if event.kv.key == self._keys.leader:
                        for item in self._news(self._leadership(event)):
                            yield item
                    elif event.type != DELETED and self._keys.seq(event.kv.key) > self._after:
                        yield await self._frame(event.kv)
        finally:
            looking.cancel()
            stream.cancel()

    def _leadership(self, event: Event) -> Leadership:
        found = () if event.type == DELETED else (event.kv,)
        return layout.decode_leader(found, event.kv.mod_revision)

    async def _keep_looking(self, stream: Stream) -> None:
        """End a watch that is silent while there is news, at the second look that finds it so."""
        was_behind = False
        while True:
            known = (self._after, self._returned)
            await asyncio.sleep(LOOK_S)
            is_behind = False
            if known == (self._after, self._returned):
                try:
                    is_behind = await self._is_behind() and known == (self._after, self._returned)
                except (EngineError, GrpcError):
                    was_behind = is_behind = True  # the next round finds the error again
            if was_behind and is_behind:
                stream.cancel()
                return
            was_behind = is_behind

    async def _is_behind(self) -> bool:
        """Whether the log has a frame or a leader that was not returned yet."""
        gets = (RangeRequest(self._keys.leader), RangeRequest(self._keys.head))
        request = TxnRequest(success=tuple(RequestOp(range=get) for get in gets))
        response = await self._client.call(TXN, request)
        leader, head = (answer.range.kvs for answer in response.responses if answer.range)
        epoch = leader[0].create_revision if leader else 0
        known = self._returned.lead.epoch if self._returned and self._returned.lead else 0
        return layout.decode_head(head).seq > self._after or epoch != known
