"""kvd's log lines in a program that tests against it, from INFO on, whatever the program logs.

kvd's loggers have to let INFO pass for that. All other handlers receive what they would receive
otherwise. Lines of a server that was started with its list (`owning`) are in that list alone; those
of the threads that wait for its disk are in all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOGGER = logging.getLogger("kvd")
_FORM = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# A level that no program sets: with another one the program has changed it meanwhile.
_LEVEL = logging.INFO - 1
_NOT_FOR_OTHERS = -1


class _Collector(logging.Handler):
    """Appends each line to the lists."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter(_FORM))
        self.lists: list[list[str]] = []
        self._found = logging.NOTSET

    def install(self) -> None:
        self._found = _LOGGER.level
        if _LOGGER.getEffectiveLevel() > _LEVEL:
            _LOGGER.setLevel(_LEVEL)
        _LOGGER.addHandler(self)

    def remove(self) -> None:
        _LOGGER.removeHandler(self)
        if _LOGGER.level == _LEVEL:
            _LOGGER.setLevel(self._found)

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        owner = _owner.get()
        for lines in self.lists:
            if owner is None or lines is owner:
                lines.append(line)
        if record.levelno < self._level():
            # Below the level of any handler that comes next. To end the propagation instead would
            # have pytest add its handlers to this logger.
            record.levelno = _NOT_FOR_OTHERS

    def _level(self) -> int:
        """Return the level that the program has for kvd."""
        level = self._found if _LOGGER.level == _LEVEL else _LOGGER.level
        parent = _LOGGER.parent
        return level or (parent.getEffectiveLevel() if parent is not None else level)


_owner: ContextVar[list[str] | None] = ContextVar("kvd_log_lines", default=None)
_collector = _Collector()


@contextmanager
def owning(lines: list[str]) -> Iterator[None]:
    """Have the lines of what is started here go to one of the lists only."""
    token = _owner.set(lines)
    try:
        yield
    finally:
        _owner.reset(token)


@contextmanager
def collected(lines: list[str]) -> Iterator[None]:
    """Append kvd's log lines to a list."""
    if not _collector.lists:
        _collector.install()
    # Another list, since a line may be logged meanwhile.
    _collector.lists = [*_collector.lists, lines]
    try:
        yield
    finally:
        # By identity: lists with the same lines are equal.
        _collector.lists = [each for each in _collector.lists if each is not lines]
        if not _collector.lists:
            _collector.remove()
