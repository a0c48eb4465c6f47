"""Documents as text: YAML and JSON as a whole, lines of JSON line by line."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from kvd.migrate import times
from kvd.migrate.documents.document import VERSION, Document, Key
from kvd.migrate.errors import Refused
from kvd.storage.errors import EX_USAGE

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def render(document: Document, form: str) -> Iterator[str]:
    """Yield a document as text, in pieces.

    Raises:
        Refused: a key cannot be in a document.
    """
    base = document.prefix.rstrip("/")
    head = {"kvd": VERSION, "prefix": document.prefix, "index": document.index}
    keys = ((path[len(base) + 1 :], key) for path, key in sorted(document.keys.items()))
    if form == "jsonl":
        yield json.dumps({**head, "count": len(document.keys)}) + "\n"
        for name, key in keys:
            shown = _shown(key)
            fields = shown if isinstance(shown, dict) else {"value": shown}
            line = {"key": _name(name, key), **fields}
            yield json.dumps(line, ensure_ascii=False) + "\n"
        return
    content = {**head, "keys": {_name(name, key): _shown(key) for name, key in keys}}
    if form == "json":
        yield json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        return
    yield yaml.dump(
        content, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=1 << 30,
        default_flow_style=None,
    )  # fmt: skip


def _name(name: str, key: Key) -> str:
    return name + "/" if key.value is None else name


def _shown(key: Key) -> str | dict[str, object]:
    shown: dict[str, object] = {}
    if key.value is not None:
        try:
            shown["value"] = key.value.decode()
        except UnicodeDecodeError:
            shown["base64"] = base64.b64encode(key.value).decode()
    if key.expiration_ns:
        shown["expiration"] = times.render(key.expiration_ns)
    elif key.ttl_s is not None:
        shown["ttl"] = key.ttl_s
    value = shown.get("value")
    return value if isinstance(value, str) and len(shown) == 1 else shown


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
