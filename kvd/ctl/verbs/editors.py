"""Editors of `edit`: the command, Ctrl-C meanwhile, a file name that tells the language."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvd.client.model import Node
from kvd.ctl.failures import failure


def command_of(given: str | None) -> list[str]:
    """Return the words of the command of an editor: a given one, or that of the environment.

    Raises:
        Failure: it is none.
    """
    text = given or os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise failure(f"{text}: {error}") from None
    if not words:
        raise failure("the editor is an empty text: name one with --editor, or in $EDITOR")
    return words


@contextmanager
def interrupts() -> Iterator[None]:
    """Leave Ctrl-C to the editor, which has the terminal and its own use for it."""
    # A function, not SIG_IGN, which the editor would inherit.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def file_name(directory: Path, key: str, seen: Node | None) -> Path:
    """Return a file name by which an editor knows the language."""
    name = re.sub(r"[^\w.-]", "_", key.rstrip("/").rpartition("/")[2]).lstrip(".-")[-100:]
    if "." not in name:
        text = "" if seen is None else seen.value or ""
        kinds: tuple[tuple[Callable[[str], bool], str], ...] = (
            (is_json, "json"),
            (_is_yaml, "yaml"),
        )
        suffix = next((suffix for is_kind, suffix in kinds if is_kind(text)), "txt")
        name = f"{name or 'value'}.{suffix}"
    return directory / name


def is_json(text: str) -> bool:
    """Return whether a text is an object or a list of JSON."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_yaml(text: str) -> bool:
    return (
        text.startswith("---") or re.match(r"[\w.-]+:(?: [^\n]*)?\n\s*[\w.-]+:", text) is not None
    )
