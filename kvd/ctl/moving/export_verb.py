"""`kvdctl export`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from kvd.ctl.command import Call, Verb, pass_call
from kvd.ctl.moving.common import connections, say, shown
from kvd.ctl.moving.import_verb import PATH
from kvd.migrate import exporting
from kvd.migrate.documents.document import FORMATS
from kvd.migrate.etcd3 import Options
from kvd.storage import disk


@click.command(
    "export",
    cls=Verb,
    help="Export the keys below KEY as a document, or to etcd v3, read back and compared.",
)
@click.argument("key", default="/")
@click.option("-o", "--out", type=PATH, metavar="FILE", help="the document (standard output)")
@click.option("--format", "form", type=click.Choice(FORMATS), help="of the document (yaml)")
@click.option("--hidden", multiple=True, metavar="KEY", help="a hidden key, which etcd never lists")
@click.option("--etcd3", metavar="URL", help="an etcd v3 instead of a document")
@click.option("--etcd3-user", metavar="NAME[:PASSWORD]", help="its user, if that is not -u's")
@click.option("--prefix", default="", metavar="P", help="into etcd v3: what all keys begin with")
@click.option("--ttl", type=click.Choice(("lease", "drop")), default="lease", help="of keys in v3")
@click.option(
    "--dirs", type=click.Choice(("none", "marker")), default="none", help="empty ones in v3"
)
@click.option(
    "--on-conflict",
    type=click.Choice(("fail", "skip", "overwrite")),
    default="fail",
    help="with keys that v3 has",
)
@click.option("--dry-run", is_flag=True, help="print what would go to v3, write nothing")
@pass_call
def export(
    call: Call,
    /,
    key: str,
    *,
    out: Path | None,
    form: str | None,
    hidden: tuple[str, ...],
    etcd3: str | None,
    etcd3_user: str | None,
    dry_run: bool,
    **flags: str,
) -> None:
    """Export keys."""
    with connections(call) as connect:
        content = exporting.read(connect(None), key, hidden)
        if etcd3 is not None:
            gateway = None if dry_run else connect(etcd3, etcd3_user)
            exporting.to_etcd3(content, gateway, Options(**flags), say, shown)
            return
        out = None if out == Path("-") else out
        text = exporting.as_document(content, key, form or exporting.form_of(out))
        if out is None:
            for piece in text:
                sys.stdout.buffer.write(piece.encode())
            return
        _replace(out, text)


def _replace(out: Path, text: Iterable[str]) -> None:
    """Write a file in one step: the whole of it, or nothing. A device or pipe is written to."""
    if out.exists() and not out.is_file() and not out.is_dir():
        with out.open("w", encoding="utf-8") as file:
            file.writelines(text)
        return
    out = out.resolve()  # a link stays, and what it leads to is replaced
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with draft.open("x", encoding="utf-8") as file:
            file.writelines(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(out)
        disk.sync_directory(out.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
