"""Form of log lines: one line per event, whatever a client has sent. Outputs: kvd.log_output.

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
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from types import TracebackType

from kvd.lines import printable
from kvd.log_output import LineWriter, Output

log = logging.getLogger(__name__)

audit = logging.getLogger("kvd.audit")
"""Audit log: changes and the users that made them, whatever the level of other lines."""
audit.setLevel(logging.INFO)

access = logging.getLogger("kvd.access")
"""Access log (`--access-log`): a line per request, whatever the level of other lines."""
access.setLevel(logging.INFO)

SLOW_QUIET_S = 30.0
"""Seconds between warnings of one kind of slowness, at least."""

_STANDARD = {"stdout": 1, "stderr": 2}
_Exception = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)

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
    """Set up the log.

    Args:
        kind: `text` or `json`.
        level: the name of a level of `logging`.
        outputs: `stderr`, `stdout`, or names of files; these are appended to, and created again
            after they have been renamed.

    Raises:
        OSError: a file cannot be opened.
    """
    formatter = JsonFormatter() if kind == "json" else TextFormatter()
    opened = [(_output(output), _encoding(output)) for output in outputs]
    handlers = [_Handler(output, formatter, encoding) for output, encoding in opened]
    logging.basicConfig(handlers=handlers, level=level)
    logging.captureWarnings(capture=True)
    # What ends a thread, or cannot be raised, is a line of the log like any other bug.
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_of_thread
    sys.unraisablehook = _log_unraisable


def dropped() -> dict[str, int]:
    """Return the number of dropped lines of each output."""
    handlers = [each for each in logging.getLogger().handlers if isinstance(each, _Handler)]
    return {handler.writer.name: handler.writer.dropped for handler in handlers}


def say(text: str) -> None:
    """Write one line to standard error, before the log is set up."""
    output, encoding = _output("stderr"), _encoding("stderr")
    writer = LineWriter(output, lambda missing, reason: b"")
    writer.put(f"{printable(text)}\n".encode(encoding, "backslashreplace"))
    writer.flush()


class _Handler(logging.Handler):
    """Hands lines to the writer of an output."""

    def __init__(self, output: Output, formatter: logging.Formatter, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding
        self.setFormatter(formatter)
        self.writer = LineWriter(output, self._notice)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record for its output."""
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 -- a bug in the logging call, logged as a line of its own
            problem = "a line of the log could not be made of %r"
            line = self._line(_record(problem, record.msg, exc_info=sys.exc_info()))
        self.writer.put(line, is_routine=record.name == access.name)

    def flush(self) -> None:
        """Wait until all lines are written or the output is blocked."""
        self.writer.flush()

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

    def _notice(self, missing: int, reason: str) -> bytes:
        return self._line(_record("%d lines of the log were dropped here: %s", missing, reason))


def _record(text: str, *args: object, exc_info: _Exception | None = None) -> logging.LogRecord:
    return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, args, exc_info)


def _output(output: str) -> Output:
    if output in _STANDARD:
        return Output(output, _STANDARD[output], is_file=False)
    return Output.open(output)


def _encoding(output: str) -> str:
    stream = getattr(sys, output) if output in _STANDARD else None
    return stream.encoding if stream is not None else "utf-8"


def set_level(name: str) -> bool:
    """Change the level of the running process; return whether the name is known."""
    level = _RUNTIME_LEVELS.get(name)
    if level is None:
        return False
    # As a guest, kvd leaves the level of its host alone.
    logging.getLogger("kvd").setLevel(level)
    return True


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    log.critical("a bug ends the process", exc_info=(kind, error, trace))


def _log_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        trace = (args.exc_type, args.exc_value, args.exc_traceback)
        log.error("a bug has ended a thread", exc_info=trace)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    if args.exc_value is not None:
        trace = (args.exc_type, args.exc_value, args.exc_traceback)
        log.error("an exception was lost: %s", args.err_msg or "", exc_info=trace)


class TextFormatter(logging.Formatter):
    """Text lines."""

    def __init__(self, layout: str = "%(asctime)s %(levelname)s %(message)s") -> None:
        super().__init__(layout)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Return the line, with unprintable characters escaped."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 -- logging's name
        """Return a traceback; no line of it can be taken for an event."""
        return _barred(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 -- logging's name
        """Return a stack; no line of it can be taken for an event."""
        return _barred(super().formatStack(stack_info))


def _barred(text: str) -> str:
    return "\n".join(f"  | {printable(line)}" for line in text.split("\n"))


class JsonFormatter(logging.Formatter):
    """JSON lines, with the names of etcd's structured log (zap).

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


class RateLimit:
    """Allows one log line in `quiet_s` seconds, and counts those that it suppresses."""

    def __init__(self, quiet_s: float) -> None:
        self._quiet_s = quiet_s
        self._not_before = float("-inf")
        self._suppressed = 0

    def allow(self) -> bool:
        """Return whether this line may be logged."""
        now = time.monotonic()
        if now < self._not_before:
            self._suppressed += 1
            return False
        self._not_before = now + self._quiet_s
        return True

    def suppressed(self) -> str:
        """Return a note on the lines suppressed since the last one, if any."""
        count, self._suppressed = self._suppressed, 0
        return f" ({count} more since the last such line)" if count else ""
