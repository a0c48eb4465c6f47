"""The log as keys of etcd, all below a prefix, and their values. Pure.

    meta                    JSON {"cluster_id", "format": 1, "secret", "made_by", "made_at"}
    head                    of the last frame: u64 BE seq, 8 bytes chain; written by each append
    log/<seq, 20 digits>    u8 0, payload; or u8 1, u16 BE number of parts, 8 bytes chain
    part/<seq>/<chain, 16 hex digits>/<3 digits>
                            up to 1 MiB of a payload that is too large for one request
    leader                  JSON {"id", "name", "peer", "since", "lease"}, attached to the lease
    replica/<id, 16 hex digits>   what a replica says of itself

Parts have the chain in their key, so that those of an append that was given up, which may come
late, cannot become part of another payload. `leader` and `log/` are next to each other: one watch
has both in the order of their revisions.
"""

import json
import struct
from dataclasses import dataclass

from kvd.replicas.engine import (
    CHAIN_BYTES,
    Candidate,
    End,
    EngineRefused,
    Lead,
    Leadership,
    Meta,
    OtherHistory,
)
from kvd.replicas.etcd.messages import KeyValue

FORMAT = 1
PART_BYTES = 1 << 20
"""Etcd takes 1.5 MiB a request."""
_HEAD = struct.Struct(f">Q{CHAIN_BYTES}s")
_PARTS = struct.Struct(f">BH{CHAIN_BYTES}s")
WHOLE, IN_PARTS = b"\0", 1
PARTS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Parts:
    """The place of a payload that has parts."""

    count: int
    chain: bytes


class Keys:
    """The keys below a prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix.encode()
        self.meta = self._prefix + b"meta"
        self.head = self._prefix + b"head"
        self.leader = self._prefix + b"leader"
        self.log = self._prefix + b"log/"
        self.log_end = self._prefix + b"log0"
        self.part = self._prefix + b"part/"
        self.replicas = self._prefix + b"replica/"
        self.replicas_end = self._prefix + b"replica0"

    def frame(self, seq: int) -> bytes:
        """The key of a frame."""
        return self.log + b"%020d" % seq

    def seq(self, key: bytes) -> int:
        """The frame of a key, the reverse of `frame`."""
        return int(key[len(self.log) :])

    def parts(self, seq: int, chain: bytes = b"") -> bytes:
        """The prefix of a frame's parts."""
        place = self.part + b"%020d/" % seq
        return place + chain.hex().encode() + b"/" if chain else place

    def replica(self, number: int) -> bytes:
        """The key of a replica's report."""
        return self.replicas + b"%016x" % number

    def replica_of(self, key: bytes) -> int:
        """The replica of a key."""
        return int(key[len(self.replicas) :], 16)


def end_of(prefix: bytes) -> bytes:
    """The first key after all that begin with a prefix that ends with `/`."""
    return prefix[:-1] + b"0"


def encode_head(seq: int, chain: bytes) -> bytes:
    """The value of `head`."""
    return _HEAD.pack(seq, chain)


def decode_head(found: tuple[KeyValue, ...]) -> End:
    """The value of `head` in a response.

    Raises:
        OtherHistory: it is not there.
    """
    if not found or len(found[0].value) != _HEAD.size:
        raise OtherHistory("the engine's log is gone: its prefix holds no end of a log")
    return End(*_HEAD.unpack(found[0].value))


def encode_parts(count: int, chain: bytes) -> bytes:
    """The value of a frame whose payload has parts."""
    return _PARTS.pack(IN_PARTS, count, chain)


def decode_frame(value: bytes) -> bytes | Parts:
    """The payload in the value of a frame, or where it is.

    Raises:
        EngineRefused: it was written by a version that this one does not know.
    """
    if value[:1] == WHOLE:
        return value[1:]
    if len(value) == _PARTS.size and value[0] == IN_PARTS:
        _, count, chain = _PARTS.unpack(value)
        return Parts(count, chain)
    raise EngineRefused(f"the log has a frame of an unknown form: {value[:16].hex()}")


def encode_meta(meta: Meta) -> bytes:
    """The value of `meta`."""
    fields = {
        "cluster_id": f"{meta.cluster_id:x}",
        "format": FORMAT,
        "secret": meta.secret.hex(),
        "made_by": meta.made_by,
        "made_at": meta.made_at_ns,
    }
    return json.dumps(fields).encode()


def decode_meta(value: bytes) -> Meta:
    """Read the value of `meta`.

    Raises:
        EngineRefused: it is of another format, or not ours.
    """
    try:
        fields = json.loads(value)
        if fields["format"] != FORMAT:
            raise EngineRefused(f"the log has format {fields['format']}, expected {FORMAT}")
        return Meta(
            int(fields["cluster_id"], 16),
            bytes.fromhex(fields["secret"]),
            str(fields["made_by"]),
            int(fields["made_at"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EngineRefused(f"the prefix is not of a log: its key meta has {error!r}") from None


def encode_leader(me: Candidate, lease: int) -> bytes:
    """The value of `leader`."""
    fields = {
        "id": f"{me.id:016x}",
        "name": me.name,
        "peer": me.peer,
        "since": me.since_ns,
        "lease": f"{lease:x}",
    }
    return json.dumps(fields).encode()


def decode_leader(found: tuple[KeyValue, ...], revision: int) -> Leadership:
    """The leadership at a revision, by the key `leader` if it is there.

    Raises:
        EngineRefused: the value is not ours.
    """
    if not found:
        return Leadership(revision)
    pair = found[0]
    try:
        fields = json.loads(pair.value)
        leader = Candidate(
            int(fields["id"], 16), str(fields["name"]), str(fields["peer"]), int(fields["since"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EngineRefused(f"the prefix is not of a log: its key leader has {error!r}") from None
    return Leadership(pair.create_revision, leader, Lead(pair.create_revision, pair.lease))
