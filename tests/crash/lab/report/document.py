"""The document that a run leaves: `schema.json` beside this file describes each field.

{"schema": "kvd-crashlab/1", "conditions": {...}, "experiments": [{...}, ...]}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SCHEMA = "kvd-crashlab/1"

Document = dict[str, Any]
Part = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


class NotADocument(Exception):
    """A file is not what a run writes; the text says where it differs."""


def document(conditions: dict[str, Any], experiments: list[dict[str, Any]]) -> Document:
    """Return the document of a run."""
    return {"schema": SCHEMA, "conditions": conditions, "experiments": experiments}


def read(path: Path) -> Document:
    """Read a document.

    Raises:
        NotADocument: it is none, or one of another version.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise NotADocument(f"{path}: {error}") from None
    if problem := objection(found):
        raise NotADocument(f"{path} is not a {SCHEMA} document: {problem}")
    return dict(found)


def objection(found: object) -> str:
    """Return where a document differs from the schema; an empty text if it does not."""
    schema = json.loads(Path(__file__).with_name("schema.json").read_text())
    return next(_problems(found, schema, schema["$defs"], "the document"), "")


def _problems(found: Any, schema: Part, defs: Part, where: str) -> Iterator[str]:
    """Compare with the part of JSON Schema that ours uses; yield where it differs."""
    if "$ref" in schema:
        schema = defs[schema["$ref"].rpartition("/")[2]]
    if "const" in schema and found != schema["const"]:
        yield f"{where} is {found!r}, expected {schema['const']!r}"
    if "enum" in schema and found not in schema["enum"]:
        yield f"{where} is {found!r}, expected one of {schema['enum']}"
    if "type" in schema and not _is_of(found, schema["type"]):
        yield f"{where} is of {type(found).__name__}, expected {schema['type']}"
    elif isinstance(found, dict):
        yield from _problems_inside(found, schema, defs, where)
    elif isinstance(found, list | tuple):
        if not schema.get("minItems", 0) <= len(found) <= schema.get("maxItems", len(found)):
            yield f"{where} has {len(found)} items"
        for place, item in enumerate(found):
            yield from _problems(item, schema.get("items", {}), defs, f"{where}[{place}]")


def _is_of(found: object, types: str | list[str]) -> bool:
    names = [types] if isinstance(types, str) else types
    kinds = tuple(kind for name in names for kind in _TYPES[name])
    return isinstance(found, kinds) and (bool in kinds or not isinstance(found, bool))


def _problems_inside(found: Part, schema: Part, defs: Part, where: str) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in found:
            yield f"{where} lacks {name!r}"
    for name, value in found.items():
        yield from _problems(value, known.get(name, others), defs, f"{where}.{name}")
