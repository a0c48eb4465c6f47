"""Fixtures of the pytest-benchmark suites: one kvd and one etcd for each module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.load import servers

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the caller choose the disk that is measured."""
    parser.addoption(
        "--bench-dir",
        type=Path,
        default=servers.SCRATCH,
        help=f"directory for the servers' data, on a disk (default: {servers.SCRATCH})",
    )
    parser.addoption(
        "--bench-full",
        action="store_true",
        help="rows at full size (a million keys, 10,000 watchers), not at that of --quick",
    )


@pytest.fixture(scope="session")
def scratch(request: pytest.FixtureRequest) -> Path:
    """The directory under which servers keep their data."""
    directory: Path = request.config.getoption("--bench-dir")
    return servers.disk_directory(directory)


@pytest.fixture(scope="module", params=["kvd", "etcd"])
def server(request: pytest.FixtureRequest, scratch: Path) -> Iterator[servers.Server]:
    """A started server; etcd is there for comparison and skipped where it is not installed."""
    if request.param == "etcd" and servers.why_no_etcd():
        pytest.skip(servers.why_no_etcd())
    make = {"kvd": servers.kvd, "etcd": servers.etcd}[request.param]
    with make(scratch) as running:
        yield running
