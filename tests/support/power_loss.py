"""A model of what a disk has to keep at a power loss.

It knows the four assumptions at the head of storage/disk.py and nothing else.
"""

import errno
import shutil

from kvd.storage import disk

SECTOR = 512
CALLS = (
    *("create", "open_to_read", "open_to_write", "preallocate", "truncate", "write_at"),
    *("sync_data", "sync_file", "sync_directory", "rename", "remove"),
)


class Inode:
    """A file: its durable bytes, and what was done to it since."""

    def __init__(self):
        self.durable = bytearray()
        self.pending = []

    def write(self, offset, data):
        while data:
            length = SECTOR - offset % SECTOR
            self.pending.append((offset, bytes(data[:length])))
            offset, data = offset + length, data[length:]

    def content(self, keep):
        data = bytearray(self.durable)
        for change in self.pending:
            if not keep():
                continue
            match change:
                case int(size):
                    data = data[:size].ljust(size, b"\0")
                case offset, piece:
                    data = data.ljust(offset, b"\0")
                    data[offset : offset + len(piece)] = piece
        return data

    def sync(self):
        self.durable = self.content(lambda: True)
        self.pending = []


class Model:
    """One directory on a disk that may lose its power after any call."""

    def __init__(self, monkeypatch, on_step, *, skip=()):
        self.active = True
        self.on_step = on_step
        self.skip = skip
        self.refuse = 0
        self.files = {}
        self.names = {}
        self.pending = []
        self.open = {}
        self.real = {name: getattr(disk, name) for name in CALLS}
        for name in CALLS:
            monkeypatch.setattr(disk, name, lambda *args, name=name: self.call(name, *args))

    def call(self, name, *args):
        if not self.active:
            return self.real[name](*args)
        if self.refuse and name in ("preallocate", "write_at"):
            self.refuse -= 1
            if not self.refuse:
                return self.short_write(*args) if name == "write_at" else self.no_space()
        result = self.real[name](*args)
        if name not in self.skip:
            getattr(self, name)(result, *args)
        self.on_step(self)
        return result

    def no_space(self):
        raise OSError(errno.ENOSPC, "full")

    def short_write(self, fd, data, offset):
        written = len(data) - 16
        self.real["write_at"](fd, data[:written], offset)
        self.open[fd].write(offset, data[:written])
        self.on_step(self)
        raise disk.PartialWrite(OSError(errno.ENOSPC, "full"), written)

    def create(self, fd, path):
        self.open[fd] = self.files[path.name] = Inode()
        self.pending.append({path.name: self.open[fd]})

    def open_to_write(self, fd, path):
        self.open[fd] = self.files[path.name]

    open_to_read = open_to_write

    def preallocate(self, _, fd, size):
        self.open[fd].pending.append(size)

    truncate = preallocate

    def write_at(self, _, fd, data, offset):
        self.open[fd].write(offset, data)

    def sync_file(self, _, fd):
        self.open[fd].sync()

    sync_data = sync_file

    def rename(self, _, source, target):
        self.files[target.name] = self.files.pop(source.name)
        self.pending.append({source.name: None, target.name: self.files[target.name]})

    def remove(self, _, path):
        del self.files[path.name]
        self.pending.append({path.name: None})

    def sync_directory(self, *_):
        self.names = self.names_with(lambda: True)
        self.pending = []

    def names_with(self, keep):
        names = dict(self.names)
        for change in self.pending:
            if keep():
                names |= change
        return {name: inode for name, inode in names.items() if inode is not None}

    def lose_power(self, directory, keep):
        """Write the directory as it may be found afterwards."""
        if directory.exists():
            shutil.rmtree(directory)
        directory.mkdir()
        for name, inode in self.names_with(keep).items():
            (directory / name).write_bytes(inode.content(keep))
