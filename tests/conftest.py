"""Fixtures of the tests that go through the public interface."""

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support.server import Client, Server, running

# How long an example takes says how busy the machine is. The ordinary run draws the same examples
# each time, so that it fails for what was changed; the full sizes draw new ones, from a seed that
# is printed (and so does any run with --hypothesis-profile=new). `scripts/test --quick` draws few.
settings.register_profile("kvd", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None, derandomize=False, database=None, print_blob=True)
settings.register_profile("quick", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("kvd")
_FULL = ("durability_full", "limits_full")


def pytest_configure(config: pytest.Config) -> None:
    # With xdist the workers are handed these options as they are then.
    options = config.option
    expression = options.markexpr.strip()
    if any(name in expression for name in _FULL) and not expression.startswith("not"):
        options.hypothesis_profile = options.hypothesis_profile or "new"
    if options.hypothesis_profile == "new" and options.hypothesis_seed is None:
        options.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def pytest_report_header(config: pytest.Config) -> list[str]:
    seed = config.option.hypothesis_seed
    return [f"examples are drawn from --hypothesis-seed={seed}"] if seed else []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills",
        type=int,
        default=4,
        help="how often tests/crash/test_kill.py kills its server (default: 4)",
    )


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """Put back what kvd and kvdctl set for their process: tests run them in theirs."""
    mask = os.umask(0o022)
    os.umask(mask)
    yield
    os.umask(mask)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a module, which keep apart by the keys they use."""
    yield from running(Server(tmp_path_factory.mktemp("data")))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A connection to the module's server."""
    with contextlib.closing(server.client()) as connection:
        yield connection


@pytest.fixture
def fresh_server(tmp_path: Path) -> Iterator[Server]:
    """A server of one's own, over an empty directory."""
    yield from running(Server(tmp_path / "data"))


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes servers, not started yet, that are stopped at the end of the test.

    They are made over one directory unless told otherwise: `make_server(*flags, data_dir=PATH)`.
    """
    with contextlib.ExitStack() as stack:

        def make(*flags: str, data_dir: Path | None = None, **options: Any) -> Server:
            server = Server(data_dir or tmp_path / "data", *flags, **options)
            stack.callback(server.stop)
            return server

        yield make
