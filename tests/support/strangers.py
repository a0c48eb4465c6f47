"""Foreign entries of a data directory, and a listing of all that is in it."""

import hashlib
import stat

STRAYS = ("lost+found/", ".keep", ".snapshots/", ".Trash-0/", "aquota.user", "$RECYCLE.BIN/")


def put_stray(directory, name):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name.rstrip("/")
    path.mkdir() if name.endswith("/") else path.touch()
    return path


def everything(*roots):
    """All entries below some directories, with kinds, modes, owners and contents."""
    found = {}
    for root in roots:
        for path in (root, *sorted(root.rglob("*"))):
            status = path.lstat()
            content = ""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            found[path] = (status.st_mode, status.st_uid, status.st_ino, content)
    return found
