"""A Chromium, and pages of it that fail their test for any error in the console."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.server import PATIENCE_S, ROOT, Server

AXE = ROOT / ".clients" / "axe.min.js"


def without(what: str) -> None:
    """Skip a test for want of something; .ci/run, which installs it, has it fail."""
    if os.environ.get("CHROMIUM_REQUIRED"):
        pytest.fail(what)
    pytest.skip(what)


# Not for the session: while Playwright is there, an event loop is running on this thread, and other
# modules' tests run loops of their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    command = os.environ.get("KVD_CHROMIUM") or shutil.which("chromium")
    if command is None:
        without("there is no chromium here; Debian has it as the package chromium")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415
    except ImportError:
        without("playwright is not installed: scripts/setup dev")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.getuid() == 0 else []
        started = playwright.chromium.launch(executable_path=command, args=flags)
        yield started
        started.close()


class Visit:
    """A page of `/ui`, and what it complained about.

    Attributes:
        page: Playwright's page.
        errors: What was in the console, and what else should not be.
        expected: Parts of messages that the test provokes.
    """

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.expected: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("pageerror", lambda error: self.errors.append(f"pageerror: {error}"))
        page.on("console", self._console)
        page.on("request", self._request)
        page.add_init_script(
            "addEventListener('securitypolicyviolation', e =>"
            " console.error('CSP', e.violatedDirective, e.blockedURI))"
        )

    def _console(self, message: Any) -> None:
        # A key may go while the page asks for it, and Chromium reports each 404.
        if "404 (Not Found)" in message.text and "/v2/keys" in message.location["url"]:
            return
        if message.type in ("error", "warning"):
            self.errors.append(f"{message.type}: {message.text}")

    def _request(self, request: Any) -> None:
        self.requests.append(request.url)
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.errors.append(f"request to another origin: {request.url}")

    def go(self, route: str = "") -> Any:
        """Open the page, or go on to another place in it."""
        self.page.goto(f"{self.url}/ui/{route}")
        return self.page

    def check(self) -> None:
        unexpected = [
            error for error in self.errors if not any(part in error for part in self.expected)
        ]
        assert unexpected == []


@pytest.fixture
def visit(
    browser: Any, server: Server, make_server: Callable[..., Server]
) -> Iterator[Callable[..., Visit]]:
    """Opens a page; of the server of the module unless another one is named.

    The pages are closed before the servers are stopped.
    """
    assert make_server
    visits: list[Visit] = []
    contexts: list[Any] = []

    def make(
        url: str = "",
        *,
        dark: bool = False,
        phone: bool = False,
        **options: object,
    ) -> Visit:
        size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 800}
        scheme = "dark" if dark else "light"
        context = browser.new_context(color_scheme=scheme, viewport=size, **options)
        contexts.append(context)
        visits.append(Visit(context.new_page(), url or server.url))
        return visits[-1]

    yield make
    for made in contexts:
        made.close()
    for each in visits:
        each.check()


@pytest.fixture(scope="session")
def axe() -> Callable[[Any], list[str]]:
    """Checks a page for what makes it hard to use for some; what it found."""
    if not AXE.exists():
        without("axe-core is missing: scripts/vendor-ui --tests")
    source = AXE.read_text()

    def check(page: Any) -> list[str]:
        # A script tag would be refused by the policy of the page.
        page.evaluate(source)
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]

    return check
