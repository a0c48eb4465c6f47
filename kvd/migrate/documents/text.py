"""The text of a document (YAML, JSON, lines of JSON) as mappings, and the lines of their names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Other(NamedTuple):
    """A value that is no text, which is refused where a text is expected."""

    name: str
    text: str


class Pairs(list[tuple[Any, Any]]):
    """A mapping of a document, which may have a name twice."""


Parsed = tuple[Any, dict[str, int]]
"""Content, mappings as pairs; and the lines of the keys of mappings, counted from 1."""


class Malformed(Exception):
    """The text is in no form of a document."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def parse(text: str, form: str | None) -> Parsed:
    """Return the content of a text.

    Args:
        text: the text.
        form: yaml or json; by the text if None.

    Raises:
        Malformed: it is in none of these forms.
    """
    return {"yaml": _yaml, "json": _json}[form or form_of(text)](text)


def form_of(text: str) -> str:
    """Return in which form a text is, by its first line that is not blank."""
    if not text.lstrip().startswith("{"):
        return "yaml"
    first = text.lstrip().partition("\n")[0]
    try:
        return "jsonl" if "keys" not in json.loads(first) else "json"
    except (ValueError, RecursionError):
        return "json"


def _json(text: str) -> Parsed:
    try:
        content = json.loads(text, object_pairs_hook=Pairs)
    except (ValueError, RecursionError) as error:
        raise Malformed(getattr(error, "lineno", 1), f"is no JSON: {error}") from None
    return content, _Lines(text)


class _Lines(dict[str, int]):
    """The lines of the names of a JSON text, each looked for when it is needed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def __missing__(self, name: str) -> int:
        found = re.search(re.escape(json.dumps(name)) + r"\s*:", self._text)
        found = found or re.search(re.escape(json.dumps(name, ensure_ascii=False)), self._text)
        return self._text.count("\n", 0, found.start()) + 1 if found else 1


def parse_lines(lines: Iterable[str]) -> Iterator[tuple[int, Pairs]]:
    """Yield the mapping in each line of JSON that is not blank, and its number.

    Raises:
        Malformed: a line is no mapping.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pairs = json.loads(line, object_pairs_hook=Pairs)
        except (ValueError, RecursionError) as error:
            raise Malformed(number, f"is no JSON: {error}") from None
        if not isinstance(pairs, Pairs):
            raise Malformed(number, 'expected a line like {"key": "web/port", "value": "8080"}')
        yield number, pairs


def _yaml(text: str) -> Parsed:
    lines: dict[str, int] = {}
    try:
        node = yaml.compose(text, Loader=_LOADER)
        return (_plain(node, lines) if node is not None else Other("empty", "")), lines
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise Malformed(mark.line + 1 if mark else 1, f"is no YAML: {problem}") from None


def _plain(node: yaml.Node, lines: dict[str, int], depth: int = 0) -> Any:
    """Return a node of YAML as JSON has it; a document is not deeper than three mappings."""
    kind = node.tag.rpartition(":")[2]
    if isinstance(node, yaml.MappingNode) and depth < 3:
        pairs = Pairs()
        for key, value in node.value:
            name = _plain(key, lines, depth=3)
            lines.setdefault(str(name), key.start_mark.line + 1)
            pairs.append((name, _plain(value, lines, depth + 1)))
        return pairs
    if isinstance(node, yaml.ScalarNode):
        if kind == "str":
            return node.value
        if kind == "int" and re.fullmatch(r"-?\d{1,19}", node.value):
            return int(node.value)
        if kind == "timestamp":
            return Other("a time", node.value)
        names = {"int": "a number", "float": "a number", "bool": "true or false", "null": "nothing"}
        return Other(names.get(kind, f"of the type {kind}"), node.value)
    return Other("a list" if isinstance(node, yaml.SequenceNode) else "a mapping", "")
