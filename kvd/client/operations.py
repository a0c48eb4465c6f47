"""The operations of a client, once for both drivers: each is a generator (see wire.py).

What they do, and which errors they raise, is said once: in blocking.py.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from kvd.client.errors import (
    ApiError,
    CompareFailed,
    KeyExists,
    KeyNotFound,
    KvdError,
    NotADirectory,
    NotAFile,
    NotSupported,
)
from kvd.client.exchanges import Exchanges, parsed, refusal
from kvd.client.model import Compare, Event, Names, Node, Op, Tree
from kvd.client.wire import Call, Endpoint, Operation, Reply, Sleep

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"
# The pause before a changed key is read again, at most, in seconds; doubled each time.
_AGAIN_S = 0.005
_AGAIN_MAX_S = 0.25
# How often a counter is read again before it is given up.
_ADD_TRIES = 1000

Given = Mapping[str, str | int | bool | None]


class Operations:
    """All operations of a client.

    Attributes:
        names: its keys.
        exchanges: how it reaches the server.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        username: str | None,
        password: str | None,
        timeout: float,
        namespace: str,
        connections: int,
    ) -> None:
        """Raises ValueError: an argument cannot be used."""
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("a client needs the URL of a server")
        if ":" in (username or "") or (username is None and password is not None):
            raise ValueError("expected a user name without a colon, beside a password")
        authorization = ""
        if username is not None:
            pair = f"{username}:{password or ''}".encode()
            authorization = "Basic " + base64.b64encode(pair).decode()
        self.names = Names(namespace)
        self.exchanges = Exchanges(
            [Endpoint.parse(one) for one in urls], authorization, timeout, connections
        )
        self._extras: frozenset[str] | None = None

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Given | None = None,
        form: Given | None = None,
        body: bytes = b"",
        content_type: str = "",
        timeout: float | None = None,
    ) -> Operation[Reply]:
        """Return the answer to a request.

        Raises:
            ApiError: it was refused.
            TransportError, OutcomeUnknown: see `Exchanges.request`.
        """
        is_write = method != "GET" and path != "/v2/mget"
        if form is not None:
            pairs = _texts(form)
            body = urlencode(pairs, quote_via=quote, safe="", errors="surrogateescape").encode()
            content_type = FORM
        made = Call(method, path, _texts(query or {}), body, content_type, is_write)
        reply = yield from self.exchanges.request(made, timeout)
        if not 200 <= reply.status < 300:
            raise self._own(refusal(reply, is_write=is_write))
        return reply

    def _own(self, error: KvdError) -> KvdError:
        """Return an error whose cause, if that is a key, is one of the program's."""
        if isinstance(error, ApiError) and error.cause.startswith("/"):
            cause = self.names.own(error.cause)
            return type(error)(error.code, error.message, cause, error.index, error.status)
        return error

    def path(self, key: str, *, raw: bool = False) -> str:
        """Return the path of a key."""
        full = quote(self.names.full(key).encode("utf-8", "surrogateescape"), safe="/~")
        return ("/v2/raw" if raw else "/v2/keys") + full

    def extras(self, timeout: float | None = None) -> Operation[frozenset[str]]:
        """Return the names of kvd's extras that the server has: none of etcd's."""
        if self._extras is None:
            reply = yield from self.exchanges.request(Call("GET", "/v2/extras", {}), timeout)
            if reply.status not in (200, 404):  # it may be another answer next time
                raise refusal(reply, is_write=False)
            names = parsed(reply, lambda body: body["extras"]) if reply.status == 200 else ()
            self._extras = frozenset(str(name) for name in names)
        return self._extras

    def require(self, extra: str) -> Operation[None]:
        """Raise NotSupported unless the server has an extra."""
        if extra not in (yield from self.extras()):
            raise NotSupported(f"the server does not have kvd's extra {extra!r}")

    # Reading.

    def get(self, key: str, *, quorum: bool) -> Operation[Node]:
        reply = yield from self.call("GET", self.path(key), query={"quorum": quorum or None})
        return parsed(reply, lambda document: self.names.node(document["node"], reply.index))

    def get_or(self, key: str, default: Any) -> Operation[Any]:
        try:
            node = yield from self.get(key, quorum=False)
        except KeyNotFound:
            return default
        return default if node.value is None else node.value

    def exists(self, key: str) -> Operation[bool]:
        try:
            yield from self.get(key, quorum=False)
        except KeyNotFound:
            return False
        return True

    def ls(
        self, key: str, *, recursive: bool, quorum: bool = False, timeout: float | None = None
    ) -> Operation[Tree]:
        query = {"recursive": recursive or None, "quorum": quorum or None}
        reply = yield from self.call("GET", self.path(key), query=query, timeout=timeout)
        return self._tree(reply)

    def _tree(self, reply: Reply) -> Tree:
        index = reply.index

        def parse(document: Mapping[str, Any]) -> Tree:
            key = self.names.own(document["node"].get("key", "/"))
            if not document["node"].get("dir"):
                raise NotADirectory(104, "Not a directory", key, index, 400)
            return Tree(key, index, self.names.below(document["node"], index))

        return parsed(reply, parse)

    def all_below(
        self, key: str, timeout: float | None = None
    ) -> Operation[tuple[dict[str, Node], int, str]]:
        """Return all that is below a directory, or a file alone; the index, and the store's id."""
        query = {"recursive": "true"}
        reply = yield from self.exchanges.request(Call("GET", self.path(key), query), timeout)
        cluster_id = reply.headers.get("x-etcd-cluster-id", "")
        if reply.status == 404:
            return {}, reply.index, cluster_id
        if reply.status != 200:
            raise refusal(reply, is_write=False)

        def parse(document: Mapping[str, Any]) -> dict[str, Node]:
            if document["node"].get("dir"):
                return self.names.below(document["node"], reply.index)
            node = self.names.node(document["node"], reply.index)
            return {node.key: node}

        return parsed(reply, parse), reply.index, cluster_id

    def page(self, key: str, after: str | None, size: int) -> Operation[tuple[Tree, str | None]]:
        """Return some children, and the name after which the next page begins."""
        if "limit" not in (yield from self.extras()):
            return (yield from self.ls(key, recursive=False)), None
        query = {"limit": size, "after": after}
        reply = yield from self.call("GET", self.path(key), query=query)
        tree = self._tree(reply)
        has_more = "x-kvd-next" in reply.headers and tree.nodes
        return tree, list(tree.nodes)[-1].rpartition("/")[2] if has_more else None

    def get_bytes(self, key: str) -> Operation[bytes]:
        yield from self.require("raw")
        reply = yield from self.call("GET", self.path(key, raw=True))
        return reply.body

    def history(self, key: str, *, limit: int, before: int | None) -> Operation[list[Event]]:
        yield from self.require("history")
        query = {"history": True, "limit": limit, "before": before}
        reply = yield from self.call("GET", self.path(key), query=query)
        return parsed(reply, self._events)

    def _events(self, document: Mapping[str, Any]) -> list[Event]:
        return [self.names.event(event) for event in document["events"]]

    # Writing.

    def write(
        self, method: str, key: str, form: Given, *, timeout: float | None = None
    ) -> Operation[Event]:
        """Return the event of a PUT or a POST."""
        if not isinstance(form.get("value", ""), str):
            raise TypeError(f"a value is a str (set_bytes takes bytes), got {form['value']!r}")
        reply = yield from self.call(method, self.path(key), form=form, timeout=timeout)
        return parsed(reply, self.names.event, is_write=True)

    def set(
        self,
        key: str,
        value: str,
        *,
        ttl: int | None,
        if_index: int | None,
        if_value: str | None,
        if_exists: bool | None,
    ) -> Operation[Event]:
        form = {
            "value": value,
            "ttl": ttl,
            "prevIndex": if_index,
            "prevValue": if_value,
            "prevExist": if_exists,
        }
        return self.write("PUT", key, form)

    def set_bytes(
        self,
        key: str,
        value: bytes,
        *,
        ttl: int | None,
        if_index: int | None,
        if_value: bytes | None,
        if_exists: bool | None,
    ) -> Operation[Event]:
        yield from self.require("raw")
        reply = yield from self.call(
            "PUT",
            self.path(key, raw=True),
            query={
                "ttl": ttl,
                "prevIndex": if_index,
                "prevValue": None if if_value is None else _text(if_value),
                "prevExist": if_exists,
            },
            body=value,
            content_type="application/octet-stream",
        )
        return parsed(reply, self.names.event, is_write=True)

    def mkdir(self, key: str, *, ttl: int | None, exist_ok: bool) -> Operation[Event | None]:
        try:
            return (
                yield from self.write("PUT", key, {"dir": True, "ttl": ttl, "prevExist": False})
            )
        except (KeyExists, NotAFile):
            if exist_ok and (yield from self.get(key, quorum=False)).dir:
                return None
            raise

    def delete(
        self,
        key: str,
        *,
        recursive: bool,
        dir: bool,  # noqa: A002 -- etcd's name
        if_index: int | None,
        if_value: str | None,
        missing_ok: bool,
    ) -> Operation[Event | None]:
        query = {
            "recursive": recursive or None,
            "dir": dir or None,
            "prevIndex": if_index,
            "prevValue": if_value,
        }
        try:
            reply = yield from self.call("DELETE", self.path(key), query=query)
        except KeyNotFound:
            if missing_ok:
                return None
            raise
        return parsed(reply, self.names.event, is_write=True)

    def update(
        self, key: str, change: Callable[[str | None], str | None], *, tries: int
    ) -> Operation[Event | None]:
        pause = _AGAIN_S
        for left in range(tries, 0, -1):
            try:
                node = yield from self.get(key, quorum=True)
            except KeyNotFound:
                node = None
            value = change(None if node is None else node.value)
            if value is None:
                return None
            condition: Given = (
                {"prevExist": False} if node is None else {"prevIndex": node.modified_index}
            )
            try:
                return (yield from self.write("PUT", key, {"value": value, **condition}))
            except (CompareFailed, KeyExists, KeyNotFound):
                if left == 1:
                    raise
            # Others change it, too: at different times they meet less often.
            yield Sleep(random.uniform(0, pause))  # noqa: S311 -- no secret
            pause = min(2 * pause, _AGAIN_MAX_S)
        raise ValueError(f"expected at least one try, got {tries}")

    def add(self, key: str, number: int) -> Operation[Event]:
        """Add to the number that is a key's value, 0 where there is no such key."""
        event = yield from self.update(
            key, lambda value: str(int(value or 0) + number), tries=_ADD_TRIES
        )
        assert event is not None
        return event

    def txn(self, ops: Sequence[Op], *, when: Sequence[Compare]) -> Operation[list[Event]]:
        yield from self.require("txn")
        full = self.names.full
        body = {
            "when": [condition.to_json(full(condition.key)) for condition in when],
            "ops": [{"action": op.action, "key": full(op.key), **op.fields} for op in ops],
        }
        reply = yield from self.call(
            "POST", "/v2/txn", body=json.dumps(body).encode(), content_type=JSON
        )
        return parsed(reply, self._events, is_write=True)


def _texts(given: Given) -> dict[str, str]:
    """Return parameters as etcd reads them, without those that are None."""
    for name, what in given.items():
        if what is not None and not isinstance(what, str | int):
            raise TypeError(f"expected a str or an int for {name}, got {what!r}")
    return {
        name: str(what).lower() if isinstance(what, bool) else str(what)
        for name, what in given.items()
        if what is not None
    }


def _text(value: bytes) -> str:
    """Return bytes as text of which `urlencode` makes the same bytes again."""
    return value.decode("utf-8", "surrogateescape")
