"""The servers of the fixtures: how each is started and ended, and its log in pytest's reports.

The hooks in here are registered with the first server, as a plugin of their own: pytest calls them
for each test, also where no test asks for a server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvd.testing.fixture import KvdFixture

_NAME = "kvd-servers"
_live: list[KvdFixture] = []
"""The servers of fixtures that are in use."""


@contextmanager
def serving(request: pytest.FixtureRequest, **options: Any) -> Iterator[KvdFixture]:
    """Run a server with options of `KvdFixture`, and with the flags of the setting `kvd_flags`."""
    if not request.config.pluginmanager.has_plugin(_NAME):
        request.config.pluginmanager.register(sys.modules[__name__], _NAME)
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
    flags: dict[str, str] = {}
    name = ""
    for text in texts:
        if name and not text.startswith("-"):
            flags[name], name = text, ""  # the value of `--name value`
            continue
        name, equals, value = text.lstrip("-").partition("=")
        flags[name] = value if equals else "true"
        name = "" if equals else name
    return flags


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
