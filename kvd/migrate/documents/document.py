"""A document: keys below a prefix as YAML, JSON or lines of JSON, for people and text diffs.

    kvd: 1
    prefix: /app                    the keys are below it
    index: 1234                     when it was exported; nothing depends on it
    keys:
      web/port: "8080"
      web/session: {value: "...", ttl: 60}     or expiration: 2026-11-27T10:08:31.920467094Z
      db/: {}                                  an empty directory; {ttl: 60} for one with a TTL
      db/_secret: {base64: AAEC}               bytes that are no UTF-8

JSON has the same shape. As lines of JSON (`jsonl`) the first line has all but the keys, and each
other one a key: `{"key": "web/port", "value": "8080"}`. Anything else is refused with its line.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import yaml

from kvd.migrate import times
from kvd.migrate.documents.text import Malformed, Other, Pairs, parse
from kvd.migrate.errors import Damaged, Refused
from kvd.storage.errors import EX_USAGE

FORMATS = ("yaml", "json", "jsonl")
_HEAD = ("kvd", "prefix", "index")
_FIELDS = frozenset(("value", "base64", "ttl", "expiration"))
_VERSION = 1
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Key(NamedTuple):
    """A key of a document: a file, or a directory where `value` is None.

    `expiration_ns` is a time, 0 for none; `ttl_s` the seconds that it lives from when it is
    applied, where that is given instead.
    """

    value: bytes | None
    expiration_ns: int = 0
    ttl_s: int | None = None


@dataclass
class Document:
    """A document: its keys by their full paths."""

    prefix: str
    index: int
    keys: dict[str, Key]


def read(text: str, name: str, form: str | None = None) -> Document:
    """Read a document.

    Args:
        text: its content.
        name: of the file, for errors.
        form: one of `FORMATS`; by the content if None.

    Raises:
        Damaged: it is none.
    """
    try:
        content, lines = parse(text, form)
    except Malformed as error:
        raise Damaged.in_line(name, error.line, str(error)) from None
    return _Reader(name, lines).document(content)


class _Reader:
    """Checks the shape of a document."""

    def __init__(self, name: str, lines: dict[str, int]) -> None:
        self._name = name
        self._lines = lines

    def _refuse(self, key: str, problem: str) -> NoReturn:
        try:
            line = self._lines[key]
        except KeyError:
            line = 1
        raise Damaged.in_line(self._name, line, problem)

    def document(self, content: object) -> Document:
        """Return the document in a content."""
        head = self._mapping("kvd", content, "the document")
        for name in head:
            if name not in (*_HEAD, "keys"):
                self._refuse(name, f"unknown field {name}; expected kvd, prefix, index, keys")
        version = head.get("kvd")
        if type(version) is not int or version != _VERSION:
            self._refuse("kvd", f"expected `kvd: {_VERSION}` in a document of kvd")
        prefix, index = head.get("prefix", "/"), head.get("index", 0)
        if not isinstance(prefix, str) or not prefix.startswith("/") or not _is_clean(prefix[1:]):
            self._refuse("prefix", "prefix: expected a key like /app")
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            self._refuse("index", "index: expected a number")
        keys: dict[str, Key] = {}
        base = prefix.rstrip("/")
        for name, told in self._mapping("keys", head.get("keys", Pairs()), "keys").items():
            if not name.strip("/") or name.startswith("/") or not _is_clean(name.rstrip("/")):
                self._refuse(name, f"{name!r} is no name of a key below {prefix}")
            path = f"{base}/{name.rstrip('/')}"
            if path in keys:
                self._refuse(name, f"{name} is there twice")
            keys[path] = self._key(name, told)
        self._check_parents(base, keys)
        return Document(prefix, index, keys)

    def _mapping(self, where: str, content: object, what: str) -> dict[str, Any]:
        if not isinstance(content, Pairs):
            self._refuse(where, f"{what}: expected a mapping")
        found: dict[str, Any] = {}
        for name, value in content:
            if not isinstance(name, str):
                text = name.text if isinstance(name, Other) else str(name)
                self._refuse(text, f'the name {text} is no text; write "{text}"')
            if name in found:
                self._refuse(name, f"{name} is there twice")
            found[name] = value
        return found

    def _key(self, name: str, told: object) -> Key:
        is_dir = name.endswith("/")
        if isinstance(told, str) and not is_dir:
            return Key(self._bytes(name, told))
        if not isinstance(told, Pairs):
            kind, text = _named(told)
            if is_dir:
                self._refuse(name, f"{name} is {kind}; a directory is {{}} or {{ttl: 60}}")
            hint = f'; write "{text}"' if text else ""
            self._refuse(name, f"{name} is {kind}{hint}")
        fields = self._mapping(name, told, name)
        if unknown := fields.keys() - _FIELDS:
            self._refuse(name, f"{name}: unknown field {min(unknown)}")
        values = [field for field in ("value", "base64") if field in fields]
        if is_dir and values:
            self._refuse(name, f"{name}: a directory has no value")
        if not is_dir and len(values) != 1:
            self._refuse(name, f"{name}: expected either value or base64")
        expiration_ns, ttl_s = self._end(name, fields)
        value = None if is_dir else self._value(name, values[0], fields[values[0]])
        return Key(value, expiration_ns, ttl_s)

    def _value(self, name: str, field: str, told: object) -> bytes:
        if not isinstance(told, str):
            kind, text = _named(told)
            self._refuse(name, f'{name}: {field} is {kind}; write "{text}"')
        if field == "value":
            return self._bytes(name, told)
        try:
            return base64.b64decode(told, validate=True)
        except (binascii.Error, ValueError):
            self._refuse(name, f"{name}: base64 is no base64")

    def _bytes(self, name: str, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            self._refuse(name, f"{name}: half of a character; write bytes as base64")

    def _end(self, name: str, fields: dict[str, Any]) -> tuple[int, int | None]:
        ttl_s, ends = fields.get("ttl"), fields.get("expiration")
        if ttl_s is not None and ends is not None:
            self._refuse(name, f"{name}: expected either ttl or expiration")
        if ttl_s is not None:
            if isinstance(ttl_s, bool) or not isinstance(ttl_s, int) or not 1 <= ttl_s < 1 << 33:
                self._refuse(name, f"{name}: ttl: expected a number of seconds, 1 or more")
            return 0, ttl_s
        if ends is None:
            return 0, None
        text = ends.text if isinstance(ends, Other) else ends
        try:
            return max(times.parse(str(text)), 1), None
        except ValueError as error:
            self._refuse(name, f"{name}: expiration: {error}")

    def _check_parents(self, base: str, keys: dict[str, Key]) -> None:
        for path in keys:
            parent = path.rpartition("/")[0]
            while len(parent) > len(base):
                above = keys.get(parent)
                if above is not None and above.value is not None:
                    name = path[len(base) + 1 :]
                    self._refuse(
                        name, f"{name}: {parent[len(base) + 1 :]} is a key, not a directory"
                    )
                parent = parent.rpartition("/")[0]


def _named(told: object) -> tuple[str, str]:
    """Return how to call what is no text, and how to write it as one."""
    match told:
        case Other(name, text):
            return name, text
        case str():
            return "a text", told
        case bool():
            return "true or false", str(told).lower()
        case int() | float():
            return "a number", str(told)
    names = ((type(None), "nothing"), (Pairs, "a mapping"), (list, "a list"))
    return next((name for kind, name in names if isinstance(told, kind)), "no text"), ""


def _is_clean(name: str) -> bool:
    return not name or all(part not in ("", ".", "..") for part in name.split("/"))


# Writing.


def render(document: Document, form: str) -> Iterator[str]:
    """Yield a document as text, in pieces.

    Raises:
        Refused: a key cannot be in a document.
    """
    base = document.prefix.rstrip("/")
    head = {"kvd": _VERSION, "prefix": document.prefix, "index": document.index}
    keys = ((path[len(base) + 1 :], key) for path, key in sorted(document.keys.items()))
    if form == "jsonl":
        yield json.dumps(head) + "\n"
        for name, key in keys:
            told = _told(key)
            fields = told if isinstance(told, dict) else {"value": told}
            line = {"key": _name(name, key), **fields}
            yield json.dumps(line, ensure_ascii=False) + "\n"
        return
    content = {**head, "keys": {_name(name, key): _told(key) for name, key in keys}}
    if form == "json":
        yield json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        return
    yield yaml.dump(
        content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=1 << 30,
        default_flow_style=None,
    )  # fmt: skip


def _name(name: str, key: Key) -> str:
    return name + "/" if key.value is None else name


def _told(key: Key) -> str | dict[str, object]:
    told: dict[str, object] = {}
    if key.value is not None:
        try:
            told["value"] = key.value.decode()
        except UnicodeDecodeError:
            told["base64"] = base64.b64encode(key.value).decode()
    if key.expiration_ns:
        told["expiration"] = times.render(key.expiration_ns)
    elif key.ttl_s is not None:
        told["ttl"] = key.ttl_s
    value = told.get("value")
    return value if isinstance(value, str) and len(told) == 1 else told


def text_of(path: bytes) -> str:
    """Return a path as text.

    Raises:
        Refused: it is none.
    """
    try:
        return path.decode()
    except UnicodeDecodeError:
        raise Refused(
            f"the key {path!r} is no UTF-8, so no document can name it", exit_status=EX_USAGE
        ) from None


def pruned(keys: Iterable[tuple[str, Key]]) -> dict[str, Key]:
    """Return keys without the directories that their keys make."""
    found = dict(keys)
    made = {path.rpartition("/")[0] for path in found}
    return {
        path: key
        for path, key in found.items()
        if key.value is not None or key.expiration_ns or key.ttl_s is not None or path not in made
    }
