"""The pytest plugin: fixtures that are servers.

Every run of pytest on the machine loads this module, so it imports nothing of kvd before a test
asks for a server.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kvd.testing.fixture import KvdFixture

_live: list[KvdFixture] = []
"""The servers of fixtures that are in use."""


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
        with suppress(ValueError):  # a test of plugins has restored the list
            sys.meta_path.remove(finder)

    early_config.add_cleanup(remove)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting `kvd_flags`."""
    text = "flags of kvd for all servers of fixtures: --event-history-limit=100 ..."
    parser.addini("kvd_flags", text, type="args", default=[])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Have each test begin with an empty log, of servers that serve several."""
    for server in _live:
        server.clear_log()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Show the log with a test that fails."""
    if call.excinfo is not None:
        for server in _live:
            _show_log(item, call.when, server)


def _show_log(item: pytest.Item, when: str, server: KvdFixture) -> None:
    if lines := server.log:
        item.add_report_section(when, f"kvd log of {server.url}", "\n".join(lines) + "\n")


@pytest.fixture
def kvd_server(request: pytest.FixtureRequest) -> Iterator[KvdFixture]:
    """A kvd in this process, empty, for one test."""
    with _serving(request) as server:
        yield server


@pytest.fixture(scope="session")
def kvd_server_session(request: pytest.FixtureRequest) -> Iterator[KvdFixture]:
    """A kvd in this process for all tests; `reset()` empties it."""
    with _serving(request) as server:
        yield server


@pytest.fixture
def kvd_process(request: pytest.FixtureRequest) -> Iterator[KvdFixture]:
    """A kvd in a process of its own, empty, for one test."""
    from kvd.testing.hosts import Child  # noqa: PLC0415 -- see above

    with _serving(request, host=Child) as server:
        yield server


@pytest.fixture
def kvd_server_factory(request: pytest.FixtureRequest) -> Iterator[Callable[..., KvdFixture]]:
    """A function that starts servers for one test: `factory(event_history_limit=100)`."""
    with ExitStack() as servers:
        yield lambda **options: servers.enter_context(_serving(request, **options))


@contextmanager
def _serving(request: pytest.FixtureRequest, **options: Any) -> Iterator[KvdFixture]:
    from kvd.testing.fixture import KvdFixture  # noqa: PLC0415 -- see above

    flags = _flags(request.config.getini("kvd_flags"))
    server = KvdFixture(**{**flags, **options})
    _live.append(server)
    try:
        yield server
    finally:
        _live.remove(server)
        if server.failed is not None and isinstance(request.node, pytest.Item):
            _show_log(request.node, "teardown", server)
        server.close()


def _flags(texts: list[str]) -> dict[str, str]:
    """Return the flags of `kvd_flags` as keywords; one without a value is on."""
    split = [text.lstrip("-").partition("=") for text in texts]
    return {name.replace("-", "_"): value if equals else "true" for name, equals, value in split}
