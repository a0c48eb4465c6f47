"""A disk that loses what was not synced: files and names, rebuilt from system calls."""

import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.lab.strace import DIRECTORY, OF_FD, SENT, STRING, Call, unhex

SECTOR = 512


@dataclass
class Inode:
    """A file: its durable bytes, and what was done to it since, oldest first."""

    durable: bytes = b""
    pending: list[tuple[int, bytes] | int] = field(default_factory=list)
    written: int = 0

    def write(self, offset: int, data: bytes) -> None:
        self.written = max(self.written, offset + len(data))
        while data:
            length = SECTOR - offset % SECTOR
            self.pending.append((offset, data[:length]))
            offset, data = offset + len(data[:length]), data[length:]

    def content(self, keep: Callable[[object], object]) -> bytes:
        """Return the bytes with some of what is pending; `keep` may also return other bytes."""
        data = bytearray(self.durable)
        for change in self.pending:
            kept = keep(change)
            if not kept:
                continue
            if isinstance(change, int):
                data = data[:change].ljust(change, b"\0")
                continue
            offset, piece = change
            if isinstance(kept, bytes):
                piece = kept
            data = data.ljust(offset, b"\0")
            data[offset : offset + len(piece)] = piece
        return bytes(data)

    def sync(self, number: int) -> None:
        """Make the oldest `number` of what is pending durable."""
        late = self.pending[number:]
        self.pending = self.pending[:number]
        self.durable = self.content(lambda _: True)
        self.pending = late


class Disk:
    """The model of one data directory; the index is left out, it is built anew after power loss."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._inodes: list[Inode] = []
        self._live: dict[str, int] = {}
        self._durable: dict[str, int] = {}
        self._pending: list[dict[str, int | None]] = []
        self._syncs: dict[int, int] = {}

    def step(self, call: Call) -> bool:
        """Take one call; return whether the disk may look different after a power loss now."""
        # What a name is made durable by, and what is told, counts when it has happened; a write may
        # have reached the disk as soon as it has begun.
        if call.name in ("fsync", "fdatasync"):
            return self._sync(call)
        if call.name in ("write", "pwrite64", "pwritev", "ftruncate", "fallocate"):
            return not call.done and self._change(call)
        if call.done and not call.failed:
            return self._name(call)
        return False

    def _inside(self, data: bytes) -> str | None:
        """Return a path relative to the directory, `.` for itself; None for anything else."""
        path = os.fsdecode(data).removesuffix(" (deleted)")
        if path == self._root:
            return "."
        if not path.startswith(self._root + "/"):
            return None
        name = path[len(self._root) + 1 :]
        return None if name.startswith("index") or name.endswith("scratch.tmp") else name

    def _file(self, call: Call) -> str | None:
        found = OF_FD.match(call.args)
        return self._inside(unhex(found[1])) if found else None

    def _change(self, call: Call) -> bool:
        name = self._file(call)
        if name is None or name not in self._live:
            return False
        inode = self._inodes[self._live[name]]
        if call.name in ("ftruncate", "fallocate"):
            numbers = re.findall(r", (\d+)", call.args)
            inode.pending.append(int(numbers[-1]))
            return True
        string = STRING.search(call.args, call.args.index(">"))
        if string is None:
            raise ValueError(f"a call that the model does not know: {call.name} {call.args[:200]}")
        offset = inode.written
        if call.name == "pwrite64":
            offset = int(re.findall(r", (\d+)", call.args[string.end() :])[1])
        inode.write(offset, unhex(string[1]))
        return True

    def _sync(self, call: Call) -> bool:
        name = self._file(call)
        if name is None:
            return False
        is_directory = name == "." or self._live.get(name) == DIRECTORY
        if not is_directory and name not in self._live:
            return False
        inode = None if is_directory else self._inodes[self._live[name]]
        if not call.done:
            self._syncs[call.number] = len(inode.pending if inode else self._pending)
            return False
        number = self._syncs.pop(call.number)
        if call.failed:
            return False
        if inode is not None:
            inode.sync(number)
        else:
            self._sync_names(name, number)
        return True

    def _sync_names(self, directory: str, number: int) -> None:
        late: list[dict[str, int | None]] = []
        for place, change in enumerate(self._pending):
            if place < number and os.path.dirname(next(iter(change))) == directory.strip("."):  # noqa: PTH120
                self._durable = _with(self._durable, change)
            else:
                late.append(change)
        self._pending = late

    def _name(self, call: Call) -> bool:
        paths = [self._inside(unhex(string)) for string in STRING.findall(call.args)]
        if not paths or paths[0] in (None, "."):
            return False
        first = paths[0]
        assert first is not None
        change: dict[str, int | None]
        if call.name == "openat":
            if "O_CREAT" not in call.args or first in self._live:
                return False
            self._inodes.append(Inode())
            change = {first: len(self._inodes) - 1}
        elif call.name == "mkdir":
            change = {first: DIRECTORY}
        elif call.name in ("rename", "renameat2"):
            second = paths[1]
            assert second is not None
            change = {first: None, second: self._live[first]}
        elif call.name in ("unlink", "unlinkat", "rmdir"):
            change = {first: None}
        else:
            return False
        self._live = _with(self._live, change)
        self._pending.append(change)
        return True

    @property
    def volatile(self) -> int:
        """How many things a power loss may take or leave."""
        files = {number for number in self._live.values() if number != DIRECTORY}
        return len(self._pending) + sum(len(self._inodes[number].pending) for number in files)

    def after_power_loss(self, keep: Callable[[object], object]) -> dict[str, bytes | None]:
        """Return the files (None: a directory) of one disk as it may be found."""
        names = self._durable
        for change in self._pending:
            if keep(change):
                names = _with(names, change)
        found: dict[str, bytes | None] = {}
        for name, number in sorted(names.items()):
            parent = os.path.dirname(name)  # noqa: PTH120
            if not parent or parent in names:
                found[name] = None if number == DIRECTORY else self._inodes[number].content(keep)
        return found


def _with(names: dict[str, int], change: dict[str, int | None]) -> dict[str, int]:
    merged = {**names, **change}
    return {name: number for name, number in merged.items() if number is not None}


def reported_by(call: Call) -> int:
    """Return the highest index that a client is told by a call that sends, 0 for any other."""
    if call.done or call.name not in ("write", "sendto", "sendmsg"):
        return 0
    data = b"".join(unhex(string) for string in STRING.findall(call.args))
    return max(map(int, SENT.findall(data)), default=0)


def keeps(dice: random.Random, number: int) -> Iterator[Callable[[object], object]]:
    """Yield ways of losing: all, nothing, some at random, and sectors half written."""
    yield lambda _: False
    yield lambda _: True
    for turn in range(number):
        odds = dice.random()
        torn = turn % 3 == 0

        def keep(change: object, odds: float = odds, torn: bool = torn) -> object:
            if dice.random() >= odds:
                return False
            if torn and isinstance(change, tuple) and dice.random() < 0.3:
                whole = change[1]
                cut = dice.randrange(len(whole) + 1)
                return whole[:cut] + dice.randbytes(len(whole) - cut)
            return True

        yield keep
