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
other one a key: `{"key": "web/port", "value": "8080"}`; it is read and written line by line. Its
`count` is the number of keys: of a file that was cut off at the end of a line. Anything else is
refused with its line.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, BinaryIO, NamedTuple, NoReturn

from kvd.migrate import times
from kvd.migrate.documents.text import Malformed, Other, Pairs, form_of, parse, parse_lines
from kvd.migrate.errors import Damaged

FORMATS = ("yaml", "json", "jsonl")
_HEAD = ("kvd", "prefix", "index")
_FIELDS = frozenset(("value", "base64", "ttl", "expiration"))
VERSION = 1
_BYTES_MAX = (
    256 << 20
)  # of YAML and JSON, which are held in memory as a whole, some 20 times as large
_LINE_BYTES_MAX = 64 << 20


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
    form = form or form_of(text)
    try:
        if form == "jsonl":
            return _Reader(name, {}).of_lines(parse_lines(text.split("\n")))
        content, lines = parse(text, form)
    except Malformed as error:
        raise Damaged.in_line(name, error.line, str(error)) from None
    return _Reader(name, lines).document(content)


def read_file(file: BinaryIO, name: str, form: str | None = None) -> Document:
    """Read a document from a file; lines of JSON one by one.

    Args:
        file: it; need not be a regular one.
        name: as for `read`.
        form: as for `read`.

    Raises:
        Damaged: it is none, or too large for its form.
    """
    first = _line(file, name, 1, _BYTES_MAX)
    text = _text(first, name, 0).removeprefix("\ufeff")
    if form is None and text.strip():
        form = form_of(text)
    if form == "jsonl":
        rest = (_text(line, name, number) for number, line in _lines(file, name))
        try:
            return _Reader(name, {}).of_lines(parse_lines(chain([text], rest)))
        except Malformed as error:
            raise Damaged.in_line(name, error.line, str(error)) from None
    rest_of_it = file.read(_BYTES_MAX + 1 - len(first))
    if len(first) + len(rest_of_it) > _BYTES_MAX:
        raise Damaged(f"{name}: has more than {_BYTES_MAX >> 20} MiB; write it as jsonl")
    return read(_text(first + rest_of_it, name, 0).removeprefix("\ufeff"), name, form)


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield the lines behind the first one, with their numbers."""
    for number in count(2):
        line = _line(file, name, number, _LINE_BYTES_MAX)
        if not line:
            return
        yield number, line


def _line(file: BinaryIO, name: str, number: int, limit: int) -> bytes:
    line = file.readline(limit + 1)
    if len(line) > limit:
        raise Damaged.in_line(name, number, f"has more than {limit >> 20} MiB")
    return line


def _text(content: bytes, name: str, line: int) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        where = f"line {line}: " if line else ""
        raise Damaged(f"{name}: {where}is no UTF-8 at offset {error.start}") from None


class _Reader:
    """Checks the shape of a document."""

    def __init__(self, name: str, lines: dict[str, int]) -> None:
        self._name = name
        self._lines = lines
        self._line = 1

    def _refuse(self, key: str, problem: str) -> NoReturn:
        try:
            line = self._lines[key]
        except KeyError:
            line = self._line
        raise Damaged.in_line(self._name, line, problem)

    def document(self, content: object) -> Document:
        """Return the document in a content."""
        head = self._mapping("kvd", content, "the document")
        document = self._head(head, (*_HEAD, "keys"))
        for name, given in self._mapping("keys", head.get("keys", Pairs()), "keys").items():
            self._add(document, name, given)
        self._check_parents(document)
        return document

    def of_lines(self, lines: Iterator[tuple[int, Pairs]]) -> Document:
        """Return the document in lines of JSON."""
        number, pairs = next(lines, (1, None))
        head = self._mapping("kvd", pairs, "the document")
        self._lines = dict.fromkeys(head, number)
        document = self._head(head, (*_HEAD, "count"))
        for number, pairs in lines:
            fields = dict(pairs)
            name = fields.pop("key", None)
            if not isinstance(name, str):
                raise Malformed(number, 'expected a line like {"key": "web/port", "value": "8080"}')
            self._line = self._lines[name] = number
            self._add(document, name, Pairs(pair for pair in pairs if pair[0] != "key"))
        expected = head.get("count", len(document.keys))
        found = len(document.keys)
        if expected != found:
            self._refuse("count", f"count: expected {expected} keys, there are {found}")
        self._check_parents(document)
        return document

    def _head(self, head: dict[str, Any], known: Sequence[str]) -> Document:
        """Return the document of a head, without its keys."""
        for name in head:
            if name not in known:
                self._refuse(name, f"unknown field {name}; expected {', '.join(known)}")
        version = head.get("kvd")
        if type(version) is not int or version != VERSION:
            self._refuse("kvd", f"expected `kvd: {VERSION}` in a document of kvd")
        prefix, index = head.get("prefix", "/"), head.get("index", 0)
        if not isinstance(prefix, str) or not prefix.startswith("/") or not _is_clean(prefix[1:]):
            self._refuse("prefix", "prefix: expected a key like /app")
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            self._refuse("index", "index: expected a number")
        return Document(prefix, index, {})

    def _add(self, document: Document, name: str, given: object) -> None:
        if not name.strip("/") or name.startswith("/") or not _is_clean(name.rstrip("/")):
            self._refuse(name, f"{name!r} is no name of a key below {document.prefix}")
        path = f"{document.prefix.rstrip('/')}/{name.rstrip('/')}"
        if path in document.keys:
            self._refuse(name, f"{name} is there twice")
        document.keys[path] = self._key(name, given)

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

    def _key(self, name: str, given: object) -> Key:
        is_dir = name.endswith("/")
        if isinstance(given, str) and not is_dir:
            return Key(self._bytes(name, given))
        if not isinstance(given, Pairs):
            kind, text = _named(given)
            if is_dir:
                self._refuse(name, f"{name} is {kind}; a directory is {{}} or {{ttl: 60}}")
            hint = f'; write "{text}"' if text else ""
            self._refuse(name, f"{name} is {kind}{hint}")
        fields = self._mapping(name, given, name)
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

    def _value(self, name: str, field: str, given: object) -> bytes:
        if not isinstance(given, str):
            kind, text = _named(given)
            self._refuse(name, f'{name}: {field} is {kind}; write "{text}"')
        if field == "value":
            return self._bytes(name, given)
        try:
            return base64.b64decode(given, validate=True)
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

    def _check_parents(self, document: Document) -> None:
        base, keys = document.prefix.rstrip("/"), document.keys
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


def _named(given: object) -> tuple[str, str]:
    """Return how to call what is no text, and how to write it as one."""
    match given:
        case Other(name, text):
            return name, text
        case str():
            return "a text", given
        case bool():
            return "true or false", str(given).lower()
        case int() | float():
            return "a number", str(given)
    names = ((type(None), "nothing"), (Pairs, "a mapping"), (list, "a list"))
    return next((name for kind, name in names if isinstance(given, kind)), "no text"), ""


def _is_clean(name: str) -> bool:
    return not name or all(part not in ("", ".", "..") for part in name.split("/"))
