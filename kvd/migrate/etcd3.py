"""Export to etcd v3, by its JSON gateway: keys, values, and leases for TTLs.

    POST /v3/auth/authenticate {"name", "password"}: a token, sent as `Authorization` from then on
    POST /v3/kv/txn       {"compare": [...], "success": [{"request_put": ...}]}; up to 100 keys
    POST /v3/lease/grant  {"TTL": "3600"}: one lease for each second of expiration
    POST /v3/kv/range     pages of 5,000 keys, to read back

Bytes are base64, 64-bit numbers are strings. etcd 3.3 has /v3beta instead of /v3. Directories,
indexes, history and users have no place in v3.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import cbor2

from kvd.client.errors import ApiError
from kvd.migrate import times
from kvd.migrate.errors import Conflict, Refused
from kvd.migrate.live import Caller
from kvd.storage import disk
from kvd.storage.format.node import Node

_JSON = "application/json"
_PER_TXN = 100  # etcd's limit is 128 operations
_TXN_BYTES = 1 << 20  # etcd's limit of a request is 1.5 MiB
_PAGE = 5000
_LEASE_MIN_S = 2
_TTL_TOLERANCE_NS = 2 * times.NS  # TTLs are whole seconds, rounded up here and down there
_SHOWN_MAX = 3
_NOT_FOUND = 404
_WITHOUT_USERS = "authentication is not enabled"


@dataclass(frozen=True)
class Options:
    """The choices of an export.

    Attributes:
        prefix: What stands before all keys.
        ttl: `lease`, or `drop`: keys with a TTL are left out.
        dirs: `none`, or `marker`: an empty directory becomes a key that ends in a slash.
        on_conflict: `fail`, `skip` or `overwrite`, of keys that are there.
    """

    prefix: str = ""
    ttl: str = "lease"
    dirs: str = "none"
    on_conflict: str = "fail"


@dataclass
class Item:
    """A key for v3: its value, and when it ends (0 for never)."""

    key: bytes
    value: bytes
    expiration_ns: int


@dataclass
class Plan:
    """The keys that go to v3, and numbers of what is left out."""

    items: list[Item] = field(default_factory=list)
    empty_directories: int = 0
    expiring: int = 0
    ended: int = 0


def plan(nodes: Mapping[bytes, Node], options: Options) -> Plan:
    """Return what becomes of some nodes: the earlier end of a key and the directories above it."""
    made = Plan()
    now_ns = disk.wall_clock_ns()
    parents = {path.rpartition(b"/")[0] for path in nodes}
    ends: dict[bytes, int] = {}
    for path, node in sorted(nodes.items()):
        above = ends.get(path.rpartition(b"/")[0], 0)
        found = [end for end in (above, node.expiration_ns) if end]
        end = ends[path] = min(found, default=0)
        key = options.prefix.encode() + path
        if node.dir_id:
            if path in parents:
                continue
            made.empty_directories += 1
            if options.dirs == "none":
                continue
            key += b"/"
        if end and options.ttl == "drop":
            made.expiring += 1
        elif end and end <= now_ns:
            made.ended += 1
        else:
            made.items.append(Item(key, node.value or b"", end))
    return made


class Gateway:
    """An etcd v3, by its gateway."""

    def __init__(self, caller: Caller) -> None:
        """Find the gateway; log in as the caller's user, where etcd requires users.

        Raises:
            Refused: there is none.
            KvdError: etcd refuses the user, or does not answer.
        """
        self._caller = caller
        caller.authorize("")  # that of the v2 API means nothing here
        self._base = "/v3"
        # The longest time that a lease took: its TTL counts from some moment in it.
        self._slowest_ns = 0
        try:
            self.version = str(self._post("/maintenance/status", {}).get("version", ""))
        except ApiError as error:
            if error.status != _NOT_FOUND:
                raise
            self._base = "/v3beta"
            self.version = str(self._post("/maintenance/status", {}).get("version", ""))
        if caller.user is not None:
            self._log_in(*caller.user)

    def _log_in(self, name: str, password: str) -> None:
        try:
            response = self._post("/auth/authenticate", {"name": name, "password": password})
        except ApiError as error:
            if _WITHOUT_USERS in f"{error.message} {error.cause}":
                return
            raise
        self._caller.authorize(str(response.get("token", "")))

    def _post(self, path: str, content: object) -> dict[str, Any]:
        body = json.dumps(content).encode()
        reply = self._caller.call("POST", self._base + path, body=body, content_type=_JSON)
        try:
            decoded = json.loads(reply.body)
        except (ValueError, RecursionError):
            decoded = None
        if not isinstance(decoded, dict):
            raise Refused(f"the gateway answers {reply.body[:80]!r}")
        return decoded

    def put(
        self, items: Sequence[Item], options: Options, done: Callable[[int], None]
    ) -> tuple[int, int]:
        """Put keys; return how many were put and how many were skipped.

        Raises:
            Conflict: one is there; the keys of the same hundred, and of those behind, were not put.
            KvdError: etcd has refused something, or does not answer.
        """
        leases: dict[int, str] = {}
        put = skipped = 0
        for group in _groups(items):
            fails = options.on_conflict == "fail"
            if self._txn(group, leases, compare=options.on_conflict != "overwrite"):
                put += len(group)
            elif fails:
                key = next((i.key for i in group if self._has(i.key)), group[0].key)
                raise Conflict(
                    f"etcd has {key.decode('utf-8', 'replace')} already: {put:,} of "
                    f"{len(items):,} keys were put; --on-conflict skip or overwrite goes on"
                )
            else:
                for item in group:
                    is_put = self._txn([item], leases, compare=True)
                    put += is_put
                    skipped += not is_put
            done(len(group))
        return put, skipped

    def conflicts(self, items: Sequence[Item], prefix: str) -> list[bytes]:
        """Return which of some keys are there."""
        there = dict(self.range(prefix))
        return [item.key for item in items if item.key in there]

    def _txn(self, items: Sequence[Item], leases: dict[int, str], *, compare: bool) -> bool:
        puts = []
        for item in items:
            put = {"key": _b64(item.key), "value": _b64(item.value)}
            if item.expiration_ns:
                put["lease"] = self._lease(item.expiration_ns, leases)
            puts.append({"request_put": put})
        content: dict[str, object] = {"success": puts}
        if compare:
            content["compare"] = [
                {"key": _b64(i.key), "target": "VERSION", "result": "EQUAL", "version": "0"}
                for i in items
            ]
        return self._post("/kv/txn", content).get("succeeded") is True

    def _lease(self, expiration_ns: int, leases: dict[int, str]) -> str:
        """Return the lease of a second of expiration, granted when it is first needed."""
        second = -(-expiration_ns // times.NS)
        if second not in leases:
            left_ns = expiration_ns - disk.wall_clock_ns()
            ttl_s = max(-(-left_ns // times.NS), _LEASE_MIN_S)
            begun_ns = disk.wall_clock_ns()
            leases[second] = str(self._post("/lease/grant", {"TTL": str(ttl_s)})["ID"])
            self._slowest_ns = max(self._slowest_ns, disk.wall_clock_ns() - begun_ns)
        return leases[second]

    def _has(self, key: bytes) -> bool:
        return bool(self._post("/kv/range", {"key": _b64(key), "count_only": True}).get("count"))

    def range(self, prefix: str) -> Iterator[tuple[bytes, tuple[bytes, str]]]:
        """Yield keys that begin with a text, with value and lease, page by page."""
        start = prefix.encode() or b"\0"
        end = _after(prefix.encode())
        while True:
            page = self._post(
                "/kv/range",
                {
                    "key": _b64(start),
                    "range_end": _b64(end),
                    "limit": _PAGE,
                    "sort_order": "ASCEND",
                    "sort_target": "KEY",
                },
            )
            key = b""
            for pair in page.get("kvs", ()):
                key = base64.b64decode(pair["key"])
                value = base64.b64decode(pair.get("value", ""))
                yield key, (value, str(pair.get("lease", "0")))
            if not page.get("more"):
                return
            start = key + b"\0"

    def check(self, items: Sequence[Item], options: Options) -> str:
        """Read back what was put; return the digest of both sides.

        Raises:
            Refused: a key is not as it should be.
        """
        there = dict(self.range(options.prefix))
        apart: list[bytes] = []
        lives: dict[str, int] = {}
        for item in items:
            value, lease = there.get(item.key, (None, "0"))
            if item.expiration_ns and item.expiration_ns <= disk.wall_clock_ns() + 2 * times.NS:
                continue
            if value != item.value or (lease != "0") != bool(item.expiration_ns):
                apart.append(item.key)
            elif item.expiration_ns:
                if lease not in lives:
                    lives[lease] = self._ends_ns(lease)
                apart_ns = abs(lives[lease] - item.expiration_ns)
                if apart_ns > _TTL_TOLERANCE_NS + self._slowest_ns:
                    apart.append(item.key)
        if apart:
            shown = ", ".join(key.decode("utf-8", "replace") for key in apart[:_SHOWN_MAX])
            raise Refused(f"read back, {len(apart):,} keys differ from the source: {shown}")
        return digest(items)

    def _ends_ns(self, lease: str) -> int:
        begun_ns = disk.wall_clock_ns()
        response = self._post("/lease/timetolive", {"ID": lease})
        self._slowest_ns = max(self._slowest_ns, disk.wall_clock_ns() - begun_ns)
        return begun_ns + int(response.get("TTL", 0)) * times.NS


def digest(items: Sequence[Item]) -> str:
    """Return the digest of keys and values, which a read back has found equal."""
    hashed = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.key):
        hashed.update(cbor2.dumps([item.key, item.value, bool(item.expiration_ns)]))
    return hashed.hexdigest()


def _groups(items: Sequence[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    group: list[Item] = []
    size = 0
    for item in islice(rest, None):
        length = len(item.key) + len(item.value)
        if group and (len(group) == _PER_TXN or size + length > _TXN_BYTES):
            yield group
            group, size = [], 0
        group.append(item)
        size += length
    if group:
        yield group


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _after(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with a prefix; a zero for all keys."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"
