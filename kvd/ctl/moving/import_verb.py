"""`kvdctl import`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from kvd.ctl.command import Call, Verb, pass_call
from kvd.ctl.moving.common import Line, connections, say, shown
from kvd.migrate.documents.document import FORMATS
from kvd.migrate.importing import Import, Options

PATH = click.Path(path_type=Path)


@click.command(
    "import",
    cls=Verb,
    help="Import a store: FROM is a data directory of etcd, a URL, a document or -; TO a new data "
    "directory or a URL. The target is read back and compared at the end. "
    "`kvdctl help migrate` shows the way.",
)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--dry-run", is_flag=True, help="print the summary, write nothing")
@click.option("--follow", is_flag=True, help="of a URL: go on until the writers have stopped")
@click.option("--stop-file", type=PATH, metavar="FILE", help="end --follow once it is there")
@click.option("--overwrite", is_flag=True, help="into a URL: replace keys that are there")
@click.option("--hidden", multiple=True, metavar="KEY", help="a hidden key, which etcd never lists")
@click.option("--new-ids", is_flag=True, help="give the new store ids of its own")
@click.option("--wal-dir", type=PATH, metavar="DIR", help="where the etcd had its log")
@click.option("--force", is_flag=True, help="read the directory of a running etcd")
@click.option("--drop-tail", is_flag=True, help="leave out a damaged last record of its log")
@click.option(
    "--uncommitted",
    type=click.Choice(("keep", "drop")),
    default="keep",
    help="entries beyond the commit index of its log",
)
@click.option("--format", "form", type=click.Choice(FORMATS), help="of a document")
@pass_call
def import_store(
    call: Call,
    /,
    source: str,
    target: str,
    *,
    stop_file: Path | None,
    uncommitted: str,
    **flags: object,
) -> None:
    """Import a store."""
    with connections(call) as connect, _interrupts(stop_file) as is_over:
        options = Options(
            drop_uncommitted=uncommitted == "drop",
            is_over=is_over,
            **flags,  # type: ignore[arg-type]
        )
        Import(options, connect, say, shown, Line()).run(source, target)


@contextmanager
def _interrupts(stop_file: Path | None) -> Iterator[Callable[[], bool]]:
    """Yield what says whether following is to end: by Ctrl+C, or by a file.

    A second Ctrl+C ends the program.
    """
    caught: list[int] = []

    def is_over() -> bool:
        if not caught and signal.getsignal(signal.SIGINT) is not note:
            signal.signal(signal.SIGINT, note)
        return bool(caught) or (stop_file is not None and stop_file.exists())

    def note(number: int, _: FrameType | None) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.getsignal(signal.SIGINT)
    try:
        yield is_over
    finally:
        signal.signal(signal.SIGINT, before)
