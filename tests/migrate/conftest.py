"""Data directories that a real etcd has written: recorded ones, and such as are made here."""

import contextlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.etcd import OTHERS, RECORDED, Etcd


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A data directory of etcd 3.4 with a snapshot and 60 entries; `told.json` is what it said."""
    return unpacked(RECORDED, tmp_path)


@pytest.fixture(params=OTHERS)
def recorded_by_other(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same of another version, which its parameter names."""
    return unpacked(OTHERS[request.param], tmp_path)


def unpacked(archive: Path, place: Path) -> Path:
    with tarfile.open(archive) as file:
        file.extractall(place, filter="data")
    return place / "single"


@pytest.fixture
def start_etcd() -> Iterator[Callable[..., Etcd]]:
    """Starts etcds that end with the test; without etcd, a skip."""
    with contextlib.ExitStack() as stack:

        def start(directory: Path, *flags: str, wait: bool = True, **options: Any) -> Etcd:
            etcd = Etcd(directory, "--unsafe-no-fsync", *flags, **options)
            stack.callback(etcd.stop)
            return etcd.start(wait=wait)

        yield start
