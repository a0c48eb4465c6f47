"""Terminals: what is escaped and coloured on one, and questions to its user."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

from kvd.lines import printable

if TYPE_CHECKING:
    from kvd.ctl.settings import Settings

COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "dim": 2}


def shown(text: str, *, is_terminal: bool) -> str:
    """Return a line as a terminal may show it; anything else gets it as it is."""
    return printable(text) if is_terminal else text


class Paint:
    """Colours for an output that wants them: a terminal, without `NO_COLOR` and `TERM=dumb`.

    Attributes:
        is_on: whether it wants them.
    """

    def __init__(self, settings: Settings, stream: TextIO | None = None) -> None:
        """Raises Failure: `--color` is neither auto, always nor never."""
        from kvd.ctl.failures import failure  # noqa: PLC0415 -- a circle else

        when = settings.text("color")
        if when not in ("auto", "always", "never"):
            raise failure(f"--color: expected auto, always or never, got {when!r}")
        is_plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        is_terminal = (stream or sys.stdout).isatty() and not is_plain
        self.is_on = settings.output != "json" and (
            when == "always" or (when == "auto" and is_terminal)
        )

    def __call__(self, colour: str, text: str) -> str:
        """Return a text in a colour."""
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self.is_on else text


def is_there() -> bool:
    """Return whether there is a user at a terminal to ask."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def choose(question: str) -> str | None:
    """Ask for one letter; None without a terminal, `q` at its end."""
    if not is_there():
        return None
    sys.stdout.flush()
    sys.stderr.write(question)
    sys.stderr.flush()
    answer = sys.stdin.readline()
    return answer.strip().lower()[:1] or ("q" if not answer else "")
