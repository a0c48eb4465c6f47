"""Differences between a document and a server: found, shown, and as conditional writes.

Hidden keys that the document does not name are left out, as an export leaves them out.
"""

from __future__ import annotations

import base64
import difflib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kvd.client.errors import KeyNotFound
from kvd.client.exchanges import json_of
from kvd.ctl.command import Call
from kvd.ctl.etcdctl.output import Json
from kvd.ctl.failures import failure
from kvd.ctl.terminal import Paint
from kvd.lines import printable
from kvd.migrate import times
from kvd.migrate.documents import document
from kvd.migrate.errors import Damaged

if TYPE_CHECKING:
    from kvd.migrate.documents.document import Document, Key

_SECOND_NS = 10**9
_SHORT = 60
"""Longer values are shown as a diff of lines."""


class Found(NamedTuple):
    """A key of the server; a directory has no value."""

    value: bytes | None
    ttl: int | None
    expiration_ns: int
    modified_index: int


@dataclass(frozen=True, slots=True)
class Change:
    """Difference of one key between server and document.

    Attributes:
        key: its path.
        before: what the server has; None for nothing.
        after: what the document has; None for nothing.
    """

    key: str
    before: Found | None
    after: Key | None

    @property
    def is_dir(self) -> bool:
        """Whether the key is a directory."""
        one = self.before or self.after
        assert one is not None
        return one.value is None


def load(file: str, key: str | None) -> Document:
    """Return a document, with its keys below another one if that is given.

    Raises:
        Failure: it is none, or cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        found = document.read(data.decode(), "standard input" if file == "-" else file)
    except OSError as error:
        raise failure(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise failure(f"{'standard input' if file == '-' else file}: it is no UTF-8") from None
    except Damaged as error:
        raise failure(str(error)) from None
    if key is None:
        return found
    old, new = found.prefix.rstrip("/"), "/" + key.strip("/") if key.strip("/") else ""
    keys = {new + path[len(old) :]: value for path, value in found.keys.items()}
    return document.Document(new or "/", found.index, keys)


def compare(call: Call, wanted: Document) -> tuple[list[Change], int]:
    """Return all differences in the order of the keys, and the index of the server.

    Raises:
        Failure: a file is there for a directory, or the other way round.
    """
    found, index = _below(call, wanted)
    parents = {
        path[:end]
        for path in wanted.keys
        for end in range(1, len(path))
        if path[end] == "/" and end > len(wanted.prefix.rstrip("/"))
    }
    changes = [
        Change(path, found.get(path), key)
        for path, key in wanted.keys.items()
        # A directory without an end is made by the keys below it.
        if not _is_same(found.get(path), key)
        and not (path in parents and path not in found and seconds(key) is None)
    ]
    for path, there in found.items():
        is_wanted_dir = path in parents or (path in wanted.keys and wanted.keys[path].value is None)
        is_wanted_file = path in wanted.keys and not is_wanted_dir
        if (is_wanted_dir and there.value is not None) or (is_wanted_file and there.value is None):
            kinds = ("directory", "file") if there.value is None else ("file", "directory")
            raise failure(f"{path} is a {kinds[0]}, in the document it is a {kinds[1]}: remove it")
    changes += [
        Change(path, there, None)
        for path, there in found.items()
        if path not in wanted.keys and path not in parents
    ]
    return sorted(changes, key=lambda change: change.key), index


def _below(call: Call, wanted: Document) -> tuple[dict[str, Found], int]:
    """Return what the server has below the prefix, and its index."""
    operations = call.session.operations
    extras = call.session.run(operations.extras())
    hidden = [path for path in wanted.keys if "/_" in path[len(wanted.prefix.rstrip("/")) :]]
    query: dict[str, str | int | bool | None] = {"recursive": True, "quorum": True}
    if "base64" in extras:
        query["base64"] = True
    if hidden and "hidden" in extras:
        query["hidden"] = True
    found: dict[str, Found] = {}
    try:
        reply = call.session.call("GET", operations.path(wanted.prefix), query=query)
    except KeyNotFound as error:
        return found, error.index
    fields = json_of(reply)["node"]
    if not fields.get("dir"):
        raise failure(f"{wanted.prefix} is no directory")
    _collect(fields, found)
    if hidden and "hidden" not in extras:
        for path in hidden:
            _collect_one(call, path, found)
    named = {path[:end] for path in hidden for end in range(len(path) + 1)}
    base = len(wanted.prefix.rstrip("/"))
    return {
        path: there for path, there in found.items() if "/_" not in path[base:] or path in named
    }, reply.index


def _collect(node: Json, found: dict[str, Found]) -> None:
    waiting = list(node.get("nodes") or ())
    while waiting:
        child = waiting.pop()
        found[child["key"]] = _found(child)
        waiting += child.get("nodes") or ()


def _collect_one(call: Call, path: str, found: dict[str, Found]) -> None:
    try:
        node = json_of(call.session.call("GET", call.session.path(path)))["node"]
    except KeyNotFound:
        return
    found[path] = _found(node)


def _found(node: Json) -> Found:
    value: bytes | None = None
    if not node.get("dir"):
        text = node.get("value", "")
        is_base64 = node.get("encoding") == "base64"
        value = base64.b64decode(text) if is_base64 else text.encode("utf-8", "replace")
    ends = times.parse(node["expiration"]) if "expiration" in node else 0
    return Found(value, node.get("ttl"), ends, node.get("modifiedIndex", 0))


def _is_same(found: Found | None, key: Key) -> bool:
    if found is None or found.value != key.value:
        return False
    if found.ttl is None:
        return not key.expiration_ns and key.ttl_s is None
    # A number of seconds is the same as any other: it counts from when it is applied.
    return key.ttl_s is not None or (
        key.expiration_ns > 0 and abs(found.expiration_ns - key.expiration_ns) <= _SECOND_NS
    )


# Shown.


def lines(changes: list[Change], paint: Paint) -> Iterator[str]:
    """Yield changes as lines for people."""
    arrow = "\u2192" if sys.stdout.isatty() and (sys.stdout.encoding or "") == "utf-8" else "->"
    for change in changes:
        name = printable(f"{change.key}/" if change.is_dir else change.key)
        before, after = change.before, change.after
        if after is None:
            yield paint("red", f"- {name}")
        elif before is None:
            value = "" if after.value is None else f" = {_quoted(after.value)}"
            yield paint("green", f"+ {name}{value}{_lifetime(after)}")
        else:
            yield from _changed(name, before, after, arrow, lambda text: paint("yellow", text))


def _changed(
    name: str, before: Found, after: Key, arrow: str, painted: Callable[[str], str]
) -> Iterator[str]:
    if before.value == after.value:
        old = "none" if before.ttl is None else str(before.ttl)
        yield painted(
            f"~ {name}  ttl {old} {arrow} {_lifetime(after).rpartition(' ')[2] or 'none'}"
        )
        return
    assert before.value is not None
    assert after.value is not None
    old, new = _quoted(before.value), _quoted(after.value)
    if max(len(old), len(new)) <= _SHORT:
        yield painted(f"~ {name}  {old} {arrow} {new}{_lifetime(after)}")
        return
    yield painted(f"~ {name}{_lifetime(after)}")
    one, other = (
        value.decode("utf-8", "replace").splitlines() for value in (before.value, after.value)
    )
    for line in list(difflib.unified_diff(one, other, lineterm=""))[2:]:
        yield f"    {printable(line)}"


def _quoted(value: bytes) -> str:
    try:
        return printable(json.dumps(value.decode(), ensure_ascii=False))
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(value).decode()}"


def _lifetime(key: Key) -> str:
    if key.ttl_s is not None:
        return f"  ttl {key.ttl_s}"
    return f"  until {times.render(key.expiration_ns)}" if key.expiration_ns else ""


def as_json(changes: list[Change]) -> list[Mapping[str, object]]:
    """Return changes for programs."""
    found: list[Mapping[str, object]] = []
    for change in changes:
        before, after = change.before, change.after
        action = "remove" if after is None else "add" if before is None else "change"
        fields: dict[str, object] = {"action": action, "key": change.key, "dir": change.is_dir}
        for name, one in (("before", before), ("after", after)):
            if one is not None and one.value is not None:
                fields[name] = one.value.decode("utf-8", "replace")
        if after is not None and (ttl := seconds(after)) is not None:
            fields["ttl"] = ttl
        found.append(fields)
    return found


def seconds(key: Key) -> int | None:
    """Return how long a key is to live from now on; None for ever."""
    if key.ttl_s is not None or not key.expiration_ns:
        return key.ttl_s
    left = key.expiration_ns - time.time_ns()
    return max(math.ceil(left / _SECOND_NS), 1)
