"""`kvdctl export`: from a server to a document, or to etcd v3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import monotonic

from kvd.migrate.content import Content
from kvd.migrate.documents.document import Document, Key
from kvd.migrate.documents.writing import pruned, render, text_of
from kvd.migrate.errors import Conflict, Refused
from kvd.migrate.etcd3 import Gateway, Item, Options, plan
from kvd.migrate.live import Caller, Source
from kvd.migrate.new_store import Shown
from kvd.storage.format.node import Node

_FORMS = {".json": "json", ".jsonl": "jsonl"}


def read(caller: Caller, key: str, hidden: Sequence[str]) -> Content:
    """Return what a server has below a key; its parents are not among it.

    Raises:
        KvdError: it cannot be read.
    """
    content = Source(caller, hidden).read(key)
    base = b"/" + key.strip("/").encode() if key.strip("/") else b""
    if base in content.nodes and not content.nodes[base].dir_id:
        raise Refused(f"{key} is a key, not a directory", exit_status=1)
    content.nodes = {
        path: node for path, node in content.nodes.items() if path.startswith(base + b"/")
    }
    return content


def form_of(out: Path | None) -> str:
    """Return the format that the name of a file implies."""
    return "yaml" if out is None else _FORMS.get(out.suffix, "yaml")


def as_document(content: Content, prefix: str, form: str) -> Iterator[str]:
    """Yield keys as a document, in pieces.

    Raises:
        Refused: a key cannot be in a document.
    """
    keys = (
        (text_of(path), Key(node.value, node.expiration_ns)) for path, node in content.nodes.items()
    )
    return render(Document("/" + prefix.strip("/"), content.index, pruned(keys)), form)


def to_etcd3(
    content: Content,
    caller: Caller | None,
    options: Options,
    say: Callable[[str], None],
    shown: Shown,
) -> None:
    """Export keys to an etcd v3, without `caller` only in words.

    Raises:
        Conflict: a key is there already.
        Refused: what was read back is not what was put.
        KvdError: etcd has refused something, or does not answer.
    """
    begun = monotonic()
    made = plan(content.nodes, options)
    expiring = sum(bool(item.expiration_ns) for item in made.items)
    say(f"{content.counts()}: {len(made.items):,} keys for etcd v3, {expiring:,} with a lease")
    for note in _left_out(made.empty_directories, made.expiring, made.ended, options):
        say(f"note: {note}")
    say("note: indexes, history and users have no place in v3")
    if caller is None:
        return
    gateway = Gateway(caller)
    if options.on_conflict == "fail":
        _require_none(gateway, made.items, options.prefix)
    nothing = [(b"", Node(b"", 0, 0))] * len(made.items)
    bar = iter(shown(nothing, len(nothing)))

    def done(count: int) -> None:
        for _ in range(count):
            next(bar, None)

    there = set(gateway.conflicts(made.items, options.prefix))
    put, skipped = gateway.put(made.items, options, done)
    kept = [item for item in made.items if options.on_conflict != "skip" or item.key not in there]
    held = gateway.check(kept, options)
    omitted = f", {skipped:,} skipped" if skipped else ""
    say(
        f"put {put:,} keys{omitted} into etcd {gateway.version} and read back: digest {held}, "
        f"equal, in {monotonic() - begun:.1f} s"
    )


def _require_none(gateway: Gateway, items: Sequence[Item], prefix: str) -> None:
    there = gateway.conflicts(items, prefix)
    if there:
        first = there[0].decode("utf-8", "replace")
        more = f" and {len(there) - 1:,} more" if len(there) > 1 else ""
        raise Conflict(
            f"etcd has {first}{more} already: nothing was put; "
            "--on-conflict skip or overwrite goes on"
        )


def _left_out(empty: int, expiring: int, ended: int, options: Options) -> Iterator[str]:
    if empty and options.dirs == "none":
        yield f"empty directories left out: {empty:,}; --dirs marker keeps them"
    if expiring:
        yield f"keys with a TTL left out: {expiring:,}"
    if ended:
        yield f"keys left out that have ended: {ended:,}"
