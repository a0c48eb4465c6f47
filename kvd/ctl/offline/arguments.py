"""Command line of the verbs that work on files: their arguments and help."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import NoReturn, Protocol

from kvd import __version__
from kvd.descriptors import discard_output
from kvd.lines import printable
from kvd.storage.errors import EX_USAGE

Verb = Callable[[argparse.Namespace], int]
"""Runs a verb with its arguments, and returns its exit status."""

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


def fail(message: str, status: int) -> int:
    """Print an error and return the exit status."""
    try:
        sys.stdout.flush()
    except OSError:  # it may be what has failed
        discard_output()
    sys.stderr.write(printable(f"kvdctl: {message}") + "\n")
    return status


class _Parser(argparse.ArgumentParser):
    """A parser that ends with the exit status that kvd gives a wrong command line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end."""
        raise SystemExit(fail(f"{message}; see `{self.prog} --help`", EX_USAGE))


class _Add(Protocol):
    """Adds the parser of a verb, by its name."""

    def __call__(self, name: str, text: str, *, force: bool = False, more: str = "") -> _Parser: ...


def command_line(runs: Mapping[str, Verb]) -> argparse.ArgumentParser:
    """Return the parser of the command line, which finds the function of a verb in `runs`."""
    parser = _Parser(prog="kvdctl", description="Looks after the data directory of a kvd.")
    parser.add_argument("--version", action="version", version=f"kvdctl {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, text: str, *, force: bool = False, more: str = "") -> _Parser:
        verb: _Parser = verbs.add_parser(name, help=text, description=text, epilog=more)
        verb.set_defaults(run=runs[name], data=None)
        if force:
            verb.add_argument("--force", action="store_true", help="also while a server has it")
        return verb

    _add_checks(add)
    _add_changes(add)
    _add_replicas(add)
    _add_data(add("compact", "purge the log behind new snapshots and rebuild the index"))
    _add_data(add("du", "print what each part takes"))
    add("failpoints", "print the names that kvd --failpoint knows")
    verb = add("help", "print a page of the manual, or list its topics")
    verb.add_argument("topic", nargs="?", metavar="TOPIC", help="such as operations or limits")
    return parser


def _add_checks(add: _Add) -> None:
    verb = add(
        "verify",
        "check everything, and say whether a server would start",
        force=True,
        more="Exit status 0: nothing is damaged, and a server starts. 65: something is damaged; "
        "the line `start` says whether a server starts (it has another copy) or refuses.",
    )
    _add_data(verb)
    verb = add("dump", "print the records of the log, one JSON object a line", force=True)
    verb.add_argument("--from-index", type=_index, default=0, metavar="N", help="the first")
    verb.add_argument("--to-index", type=_index, default=0, metavar="N", help="the last")
    _add_data(verb)
    verb = add("digest", "print one hash of all keys, values, indexes and events", force=True)
    verb.add_argument("--to-index", type=_index, metavar="N", help="as it was at index N")
    _add_data(verb)


def _add_changes(add: _Add) -> None:
    verb = add("repair", "cut off the end of a damaged log; says only what it would do")
    verb.add_argument(
        "--truncate-at", type=_index, metavar="N", required=True, help="the last index to keep"
    )
    verb.add_argument("--yes", action="store_true", help="do it; all is kept in quarantine/")
    _add_data(verb)
    verb = add("backup", "copy a store, of a running server too")
    _add_data(verb)
    verb.add_argument("destination", type=Path, metavar="DEST", help="a new directory")
    verb = add("restore", "make a new store from a backup or a data directory", force=True)
    point = verb.add_mutually_exclusive_group()
    point.add_argument("--to-index", type=_index, metavar="N", help="as it was at index N")
    point.add_argument(
        "--to-time", type=_time_ns, metavar="TIME", help="as it was at an RFC 3339 time"
    )
    _add_data(verb, "BACKUP")
    verb.add_argument("destination", type=Path, metavar="DIR", help="a new directory")


def _add_replicas(add: _Add) -> None:
    verb = add("detach", "make the store of a replica one of its own, with new ids")
    verb.add_argument(
        "--keep-cluster-id",
        action="store_true",
        help="for clients that refuse another one; no other replica may go on",
    )
    _add_data(verb)
    verb = add("replicate-anew", "let a replica make a new log at its next start")
    _add_data(verb)
    verb.add_argument("engine", metavar="URL", help="as for kvd --replicate, with a new prefix")


def _add_data(verb: argparse.ArgumentParser, name: str = "DATA") -> None:
    verb.add_argument("data", type=Path, metavar=name, help="a data directory or a backup")


def _index(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no index")
    return int(text)


def _time_ns(text: str) -> int:
    match = _RFC3339.fullmatch(text.upper())
    with suppress(ValueError):
        if match is not None:
            seconds = datetime.fromisoformat(match[1] + match[3]).timestamp()
            return int(seconds) * 10**9 + int((match[2] or "0").ljust(9, "0"))
    raise argparse.ArgumentTypeError(f"{text!r} is no time like 2026-11-23T02:50:00.5Z")
