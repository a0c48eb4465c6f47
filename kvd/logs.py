"""How the log reads: one line per event, whatever a client has sent.

    text   2026-11-23 02:49:52,986 INFO listening on http://127.0.0.1:2379
    json   {"level":"info","ts":"2026-11-23T02:49:52.986Z","logger":"kvd.server","msg":"..."}

Log lines may quote clients: hosts, keys, names of users. What does not print (CR, LF, escapes of a
terminal, marks that turn the direction of text) is therefore written as an escape, by JSON's own
rules or Python's. Only a traceback takes several lines of text; each begins with a bar, so that
none can be taken for an event.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler

SLOW_QUIET_S = 30.0
"""How often, at most, one kind of slowness is told."""

# The names that PUT /config/local/log takes, as etcd's logging package reads them.
_RUNTIME_LEVELS = {
    "CRITICAL": logging.CRITICAL, "C": logging.CRITICAL,
    "ERROR": logging.ERROR, "0": logging.ERROR, "E": logging.ERROR,
    "WARNING": logging.WARNING, "1": logging.WARNING, "W": logging.WARNING,
    "NOTICE": logging.INFO, "2": logging.INFO, "N": logging.INFO,
    "INFO": logging.INFO, "3": logging.INFO, "I": logging.INFO,
    "DEBUG": logging.DEBUG, "4": logging.DEBUG, "D": logging.DEBUG,
    "TRACE": logging.DEBUG, "5": logging.DEBUG, "T": logging.DEBUG,
}  # fmt: skip


def configure(kind: str, level: str, outputs: Sequence[str] = ("stderr",)) -> None:
    """Send the log somewhere, as `text` or `json`.

    Args:
        kind: its form.
        level: a name of `logging`.
        outputs: `stderr`, `stdout`, or names of files; these are appended to, and made anew when
            somebody has renamed them.

    Raises:
        OSError: a file cannot be opened.
    """
    handlers = list(map(_handler, outputs))
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if kind == "json" else TextFormatter())
    logging.basicConfig(handlers=handlers, level=level)


def _handler(output: str) -> logging.Handler:
    streams = {"stderr": sys.stderr, "stdout": sys.stdout}
    if output in streams:
        return logging.StreamHandler(streams[output])
    return WatchedFileHandler(output, encoding="utf-8")


def set_level(name: str) -> bool:
    """Change the level of the running process; return whether there is one of this name."""
    level = _RUNTIME_LEVELS.get(name)
    if level is None:
        return False
    logging.getLogger().setLevel(level)
    return True


def printable(text: str) -> str:
    """Return a text of one line, in which what does not print is written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Return the line itself."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 -- logging's name
        """Return a traceback, none of whose lines looks like an event."""
        text = super().formatException(ei)  # type: ignore[arg-type]
        return "\n".join(f"  | {printable(line)}" for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """Lines for machines: the names are those of etcd's structured log (zap).

    A record's attribute `fields`, a dict, becomes further members.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        members: dict[str, object] = {
            "level": record.levelname.lower(),
            "ts": when.replace("+00:00", "Z"),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        members.update(getattr(record, "fields", {}))
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        # In ASCII: no reader of lines takes U+2028 for the end of one.
        return json.dumps(members, separators=(",", ":"))


class Rarely:
    """Lets through one event in `quiet_s` seconds, and counts those that it kept back."""

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._not_before = float("-inf")
        self._kept_back = 0

    def __call__(self) -> bool:
        """Return whether this event may be told."""
        now = time.monotonic()
        if now < self._not_before:
            self._kept_back += 1
            return False
        self._not_before = now + self._quiet_s
        return True

    def kept_back(self) -> str:
        """Return what to add to the line about those kept back since the last one, if any."""
        count, self._kept_back = self._kept_back, 0
        return f" ({count} more since the last such line)" if count else ""
