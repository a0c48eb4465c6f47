"""Disk usage of the parts of a data directory."""

from itertools import chain
from pathlib import Path
from typing import NamedTuple

from kvd.storage.format.names import SPARE_NAME


class Usage(NamedTuple):
    """The usage of one part of a data directory: files, their lengths, and space on the disk."""

    part: str
    files: int
    length: int
    allocated: int


def usage(path: Path) -> list[Usage]:
    """Return what each part takes; of files that a server removes meanwhile, nothing."""
    parts: dict[str, list[tuple[int, int]]] = {}
    # The log may be on another disk, behind a link, which `rglob` does not follow.
    log = path / "wal"
    for file in chain(path.rglob("*"), log.rglob("*") if log.is_symlink() else ()):
        try:
            status = file.stat()
        except FileNotFoundError:
            continue
        if file.is_file():
            inside = file.relative_to(path).parts
            part = f"{inside[0]}/" if len(inside) > 1 else inside[0]
            if file.name == SPARE_NAME:
                part = f"wal/{SPARE_NAME}"
            parts.setdefault(part, []).append((status.st_size, status.st_blocks * 512))
    return [
        Usage(part, len(files), sum(size for size, _ in files), sum(blocks for _, blocks in files))
        for part, files in sorted(parts.items())
    ]
