"""A disk that stops at one of the calls that change it, as in a crash or a power cut."""

from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from kvd.storage import disk

_CALLS = (
    *("create", "preallocate", "rename", "remove", "sync_data", "sync_directory", "sync_file"),
    *("truncate", "write_at"),
)


class Crash(BaseException):
    """The end of the process."""


class DyingDisk:
    """Lets so many calls happen, and none after them.

    Attributes:
        died: Whether one more was made.
    """

    def __init__(self, monkeypatch, calls, kept, *, loses_names):
        self.died = False
        self._left = calls
        # What takes back the changes of names that no sync of their directory has followed.
        self._undo = []
        self._loses_names, self._kept, self._numbers = loses_names, kept, count()
        self._real = {name: getattr(disk, name) for name in _CALLS}
        for name in _CALLS:
            monkeypatch.setattr(disk, name, lambda *args, name=name: self._call(name, *args))

    def _call(self, name, *args):
        if self._left <= 0:
            self.died = True
            raise Crash
        self._left -= 1
        undo = self._undo_of(name, *args) if self._loses_names else None
        result = self._real[name](*args)
        if name == "sync_directory":
            self._undo = [step for step in self._undo if step[0] != args[0]]
        elif undo:
            self._undo.append((args[-1].parent, undo))
        return result

    def _undo_of(self, name, *args):
        if name == "create":
            return lambda: args[0].unlink(missing_ok=True)
        if name == "remove" and args[0].exists():
            return self._back(args[0])
        if name == "rename":
            before = self._back(args[1]) if args[1].exists() else args[1].unlink
            back = self._back(args[0])

            def undo():
                before()
                back()

            return undo
        return None

    def _back(self, path):
        """Return what gives a file its name again."""
        kept = self._kept / str(next(self._numbers))
        kept.hardlink_to(path)
        return lambda: kept.replace(path)

    def lose(self):
        """Take back what a power cut takes."""
        for _, undo in reversed(self._undo):
            undo()


@contextmanager
def dying_after(monkeypatch, calls, kept, *, loses_names):
    """Run what is inside on such a disk, until its end or the crash.

    In the directory `kept`, of the same file system, stands what may be taken back.
    """
    with TemporaryDirectory(dir=kept) as place:
        with monkeypatch.context() as patch:
            dying = DyingDisk(patch, calls, Path(place), loses_names=loses_names)
            with suppress(Crash):
                yield dying
        if dying.died:
            dying.lose()
