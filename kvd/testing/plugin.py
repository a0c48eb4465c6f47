"""The pytest plugin: fixtures that are servers.

Every run of pytest on the machine loads this module, so it imports nothing of kvd before a test
asks for a server, and has no hooks but those that must be there by then (serving.py has the rest).
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder

import pytest

TYPE_CHECKING = False  # typing's, without the import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

    from kvd.testing.fixture import KvdFixture


class _Finder:
    """Finds the modules of kvd before pytest does.

    pytest rewrites the asserts of all modules of a distribution with a plugin. That would compile
    every module of the server again, for no assert of a test.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of kvd, as Python finds it; None for all others."""
        return PathFinder.find_spec(name, path, target) if name.startswith("kvd.") else None


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Find the modules of kvd from here on: a conftest.py may import some."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)

    def remove() -> None:
        if finder in sys.meta_path:  # a test of plugins may have restored the list
            sys.meta_path.remove(finder)

    early_config.add_cleanup(remove)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting `kvd_flags`."""
    text = "flags of kvd for all servers of fixtures: --event-history-limit=100 ..."
    parser.addini("kvd_flags", text, type="args", default=[])


@pytest.fixture
def kvd_server(request: pytest.FixtureRequest) -> Iterator[KvdFixture]:
    """A kvd in this process, empty, for one test."""
    from kvd.testing.serving import serving  # noqa: PLC0415 -- see above

    with serving(request) as server:
        yield server


@pytest.fixture(scope="session")
def kvd_server_session(request: pytest.FixtureRequest) -> Iterator[KvdFixture]:
    """A kvd in this process for all tests; `reset()` empties it."""
    from kvd.testing.serving import serving  # noqa: PLC0415 -- see above

    with serving(request) as server:
        yield server


@pytest.fixture
def kvd_process(request: pytest.FixtureRequest) -> Iterator[KvdFixture]:
    """A kvd in a process of its own, empty, for one test."""
    from kvd.testing.hosts import Child  # noqa: PLC0415 -- see above
    from kvd.testing.serving import serving  # noqa: PLC0415 -- see above

    with serving(request, host=Child) as server:
        yield server


@pytest.fixture
def kvd_server_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., KvdFixture]]:
    """A function that starts servers for one test: `factory(event_history_limit=100)`."""
    from contextlib import ExitStack  # noqa: PLC0415 -- see above

    from kvd.testing.serving import serving  # noqa: PLC0415 -- see above

    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(serving(request, **options))
