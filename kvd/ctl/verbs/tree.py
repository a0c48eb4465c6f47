"""`tree`: all below a key, as a tree."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import click

from kvd.client.exchanges import json_of
from kvd.ctl.command import Call, Verb, keys, pass_call
from kvd.ctl.etcdctl.output import Json, print_answer, write
from kvd.ctl.terminal import Paint
from kvd.lines import printable

if TYPE_CHECKING:
    from kvd.client.operations import Given


class _Lines(NamedTuple):
    """The lines of a tree: before an entry and the last one, and before what is below them."""

    entry: str
    last: str
    below: str
    below_last: str


_BOXES = _Lines("├── ", "└── ", "│   ", "    ")
_PLAIN = _Lines("|-- ", "`-- ", "|   ", "    ")


@click.command(cls=Verb, help="Show all below a key as a tree.")
@click.argument("key", default="/", shell_complete=keys)
@click.option("--level", "-L", type=click.IntRange(1), metavar="N", help="so many levels")
@click.option("--values", is_flag=True, help="with the values")
@click.option("--hidden", is_flag=True, help="hidden keys too (kvd only)")
@pass_call
def command(call: Call, *, key: str, level: int | None, values: bool, hidden: bool) -> None:
    """Show all below a key as a tree."""
    operations = call.session.operations
    extras = call.session.run(operations.extras())
    if hidden:
        call.session.run(operations.require("hidden"))
    query: Given = {"recursive": "true", "sorted": "true", "hidden": hidden or None}
    if level is not None and "depth" in extras:
        query = {"depth": level, "sorted": "true", "hidden": hidden or None}
    reply = call.session.call("GET", call.session.path(key), query=query)
    answer = json_of(reply)
    if call.is_json:
        print_answer(answer, reply.index, "json")
        return
    node, paint = answer["node"], Paint(call.settings)
    shape = _BOXES if sys.stdout.isatty() and _can_show(_BOXES.entry) else _PLAIN
    lines = [_label(node, node.get("key") or "/", paint, values=values)]
    entries = list(_entries(node, level, shape))
    for before, child in entries:
        name = child["key"].rpartition("/")[2]
        lines.append(paint("dim", before) + _label(child, name, paint, values=values))
    directories = sum(bool(child.get("dir")) for _, child in entries)
    keys = len(entries) - directories + (not node.get("dir"))
    lines.append(f"{_count(keys, 'key')}, {_count(directories, 'directory')}, index {reply.index}")
    write("\n".join(lines) + "\n")


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _count(number: int, word: str) -> str:
    plural = f"{word.removesuffix('y')}ies" if word.endswith("y") and word != "key" else f"{word}s"
    return f"{number:,} {word if number == 1 else plural}"


def _label(node: Json, name: str, paint: Paint, *, values: bool) -> str:
    text = printable(name)
    if node.get("dir"):
        text = paint("blue", text if text.endswith("/") else f"{text}/")
    elif values:
        text += f" = {printable(node.get('value', ''))}"
    return text + (paint("dim", f"  ttl {node['ttl']}s") if "ttl" in node else "")


def _entries(node: Json, level: int | None, shape: _Lines) -> Iterator[tuple[str, Json]]:
    """Yield what is below a node, parents first, each with the lines before its name."""
    waiting = _children(node, "", 1)
    while waiting:
        child, prefix, depth, is_last = waiting.pop()
        yield prefix + (shape.last if is_last else shape.entry), child
        if level is None or depth < level:
            below = prefix + (shape.below_last if is_last else shape.below)
            waiting += _children(child, below, depth + 1)


def _children(node: Json, prefix: str, depth: int) -> list[tuple[Json, str, int, bool]]:
    """Return the children of a node, the last one first."""
    nodes = node.get("nodes") or ()
    return [(child, prefix, depth, number == 0) for number, child in enumerate(reversed(nodes))]
