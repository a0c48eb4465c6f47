"""Answers as etcdctl prints them, and its sentences for errors.

`simple` is the value, `extended` the node as a head of fields, `json` the answer as Go's
encoding/json writes etcdctl's own types: in their order, with `nodes` and `prevNode` also if empty.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kvd.client.errors import ApiError, KvdError, NotSupported, TransportError
from kvd.ctl.failures import REFUSED, UNREACHABLE, USAGE, Failure, failure
from kvd.ctl.failures import explained as of_kvdctl
from kvd.lines import printable

if TYPE_CHECKING:
    from kvd.ctl.settings import Settings

Json = Mapping[str, Any]
"""A node, or an answer, as the server has sent it."""


def write(text: str) -> None:
    """Write text to standard output as it is, whatever the encoding of the terminal is."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def quoted(name: str) -> str:
    """Return a name as a part of a path.

    Raises:
        Failure: it is no UTF-8.
    """
    try:
        return quote(name, safe="")
    except UnicodeEncodeError:
        raise failure(f"{name}: it is no UTF-8") from None


def json_bytes(value: object) -> bytes:
    """Return a value as JSON.

    Raises:
        Failure: a text in it is no UTF-8.
    """
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise failure("a name, password or URL is no UTF-8") from None


def print_answer(answer: Json, index: int, output: str) -> None:
    """Print the answer to a request for a key.

    Args:
        answer: what the server has answered.
        index: its `X-Etcd-Index`.
        output: the format.
    """
    if output == "simple":
        write(_simple(answer))
    elif output == "extended":
        write(_extended(answer, index))
    elif output == "json":
        write(_json(answer) + "\n")
    else:
        sys.stdout.flush()
        sys.stderr.write(f"Unsupported output format: {printable(output)}\n")


def _simple(answer: Json) -> str:
    if answer["action"] != "delete":
        return f"{answer['node'].get('value', '')}\n"
    return f"PrevNode.Value: {(answer.get('prevNode') or {}).get('value', '')}\n"


def _extended(answer: Json, index: int) -> str:
    node, previous = answer["node"], answer.get("prevNode")
    lines = [
        f"Key: {node.get('key', '')}",
        f"Created-Index: {node.get('createdIndex', 0)}",
        f"Modified-Index: {node.get('modifiedIndex', 0)}",
    ]
    if previous is not None:
        lines.append(f"PrevNode.Value: {previous.get('value', '')}")
    lines += [f"TTL: {node.get('ttl', 0)}", f"Index: {index}"]
    if answer["action"] != "delete":
        lines += ["", node.get("value", "")]
    return "\n".join(lines) + "\n"


def _json(answer: Json) -> str:
    fields = (_text(answer["action"]), _node(answer["node"]), _node(answer.get("prevNode")))
    return '{{"action":{},"node":{},"prevNode":{}}}'.format(*fields)


def _node(node: Json | None) -> str:
    if node is None:
        return "null"
    nodes = node.get("nodes")
    children = "null" if nodes is None else f"[{','.join(map(_node, nodes))}]"
    fields = [f'"key":{_text(node.get("key", ""))}']
    if node.get("dir"):
        fields.append('"dir":true')
    fields += [
        f'"value":{_text(node.get("value", ""))}',
        f'"nodes":{children}',
        f'"createdIndex":{node.get("createdIndex", 0)}',
        f'"modifiedIndex":{node.get("modifiedIndex", 0)}',
    ]
    if "expiration" in node:
        fields.append(f'"expiration":{_text(node["expiration"])}')
    if node.get("ttl"):
        fields.append(f'"ttl":{node["ttl"]}')
    return "{" + ",".join(fields) + "}"


def _text(text: str) -> str:
    from kvd.json_text import escape  # noqa: PLC0415 -- for JSON alone

    return '"' + escape(text.encode("utf-8", "replace")).decode() + '"'


# Errors.


def wrong(message: str, status: int = USAGE) -> Failure:
    """Return a failure of the command line."""
    return Failure(f"Error:  {message}", status)


def explained(error: KvdError, settings: Settings) -> Failure:
    """Return an error of the client in etcdctl's words."""
    if isinstance(error, TransportError) and error.failures:
        return Failure(_unreachable(error), REFUSED if settings.is_on("no_sync") else UNREACHABLE)
    if isinstance(error, NotSupported):
        return of_kvdctl(error)
    if isinstance(error, ApiError) and error.code:
        return wrong(f"{error.code}: {error.message} ({error.cause}) [{error.index}]", REFUSED)
    return wrong(str(error), REFUSED)


def plain(error: KvdError, settings: Settings) -> Failure:
    """Return an error of users, roles and members: these have no code, and `Error:` is left out."""
    if isinstance(error, TransportError) and error.failures:
        text = _unreachable(error)
        return Failure(text, USAGE if settings.is_on("no_sync") else UNREACHABLE)
    return Failure(error.message if isinstance(error, ApiError) else str(error), USAGE)


def _unreachable(error: TransportError) -> str:
    lines = [f"error #{n}: {_dial(*one)}\n" for n, one in enumerate(error.failures.items())]
    head = "client: etcd cluster is unavailable or misconfigured; "
    return f"Error:  {head}{'; '.join(lines)}\n{''.join(lines)}"


def _dial(address: str, error: Exception) -> str:
    """Return the error of a connection as Go tells it."""
    kind = "unix" if address.startswith("/") else "tcp"
    if isinstance(error, TimeoutError):
        return f"dial {kind} {address}: i/o timeout"
    if isinstance(error, socket.gaierror):
        return f"dial tcp: lookup {address.rpartition(':')[0]}: no such host"
    if isinstance(error, OSError) and error.errno and type(error).__module__ == "builtins":
        return f"dial {kind} {address}: connect: {os.strerror(error.errno).lower()}"
    return f"{address}: {error or type(error).__name__}"
