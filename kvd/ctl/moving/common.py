"""Connections, progress and errors of the verbs that move a store."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol, TypeVar

import click

from kvd.ctl.command import Call
from kvd.ctl.credentials import credentials
from kvd.ctl.failures import failure
from kvd.ctl.session import Session
from kvd.ctl.settings import Settings
from kvd.lines import printable
from kvd.migrate.live import Caller
from kvd.storage.errors import EX_IOERR, StorageError

T = TypeVar("T")
_READ = "5m"
"""How long one request may take: a read of all keys takes longer than the usual limit."""


class Connect(Protocol):
    """Connects to a URL, or to the server of the settings."""

    def __call__(self, url: str | None, username: str | None = None) -> Caller:
        """Return a connection; with the user of the settings, or one that is given as for `-u`."""


@contextmanager
def connections(call: Call) -> Iterator[Connect]:
    """Yield what connects to a URL, or to the server of the settings; closed at the end.

    Errors of the storage become failures of the verb. What is written meanwhile is private.
    """
    sessions: list[Session] = []

    @cache  # a password is asked for, or read from standard input, once
    def user_of(username: str | None) -> tuple[str, str] | None:
        own = {} if username is None else {"username": username, "password_file": None}
        name, password = credentials(Settings(call.given | own))
        return None if name is None else (name, password or "")

    def connect(url: str | None, username: str | None = None) -> Caller:
        given = call.given if url is None else call.given | {"endpoints": url}
        if (user := user_of(username)) is not None:
            given = given | {"username": ":".join(user)}
        if call.settings.explicit("total_timeout") is None:
            given = given | {"total_timeout": _READ}
        sessions.append(Session(Settings(given)))
        return Caller(sessions[-1].operations, sessions[-1].driver, user)

    mask = os.umask(0o077)
    try:
        yield connect
    except StorageError as error:
        raise failure(str(error), error.exit_status) from error
    except OSError as error:
        raise failure(str(error), EX_IOERR) from error
    finally:
        os.umask(mask)
        for session in sessions:
            session.close()


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(printable(line) + "\n")
    sys.stdout.flush()


def shown(items: Iterable[T], length: int) -> Iterable[T]:
    """Pass items on, with a bar on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    with click.progressbar(items, length, file=sys.stderr) as bar:
        yield from bar


class Line:
    """A line on a terminal that is replaced by the next one."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, text: str) -> None:
        """Show a text; an empty one ends the line."""
        if text == self._shown or not sys.stderr.isatty():
            return
        sys.stderr.write("\r\x1b[K" + printable(text))
        sys.stderr.flush()
        self._shown = text
