"""Chromium's own EventSource, over restarts of kvd: each event once, and `lost` where some are."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.clients.processes import Process
from tests.support.server import PATIENCE_S, Server, free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

# Tells what it gets in order: one report at a time, with a number of its own.
PAGE = """<!doctype html><title>events</title><script>
const reports = [];
let sending = false;
async function send() {
  if (sending) return;
  sending = true;
  while (reports.length) {
    await fetch("/report", {method: "POST", body: JSON.stringify(reports[0])});
    reports.shift();
  }
  sending = false;
}
function report(kind, event) {
  reports.push({kind, id: event.lastEventId, data: event.data && JSON.parse(event.data)});
  send();
}
const source = new EventSource("%s");
source.onopen = event => report("open", event);
for (const kind of ["set", "create", "update", "delete", "expire", "compareAndSwap", "lost"])
  source.addEventListener(kind, event => report(kind, event));
</script>
"""


class Page:
    """A page, where it is served, and what it has told."""

    def __init__(self) -> None:
        self._received: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self.html = ""
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = page.html.encode() if self.path == "/" else b""
                self._answer(200 if body else 404, body)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                page.add(json.loads(body))
                self._answer(204, b"")

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, report: dict[str, str]) -> None:
        with self._changed:
            self._received.append((report["kind"], report.get("id", "")))
            self._changed.notify_all()

    def wait_for(self, holds: Callable[[list[tuple[str, str]]], bool]) -> list[tuple[str, str]]:
        """Wait until what it has told fulfils a condition; all of it."""
        with self._changed:
            found = self._changed.wait_for(lambda: holds(self._received), timeout=2 * PATIENCE_S)
        assert found, self._received
        return [*self._received]

    def opened(self, times: int) -> None:
        """Wait until its stream has begun so often."""
        self.wait_for(lambda received: [kind for kind, _ in received].count("open") >= times)


def chromium_command() -> str:
    """The path of Chromium; without it, a skip."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("there is no chromium here; Debian has it as the package chromium")


@contextmanager
def page_of(start: Callable[..., Process], directory: Path, url: str, page: Page) -> Iterator[None]:
    """Chromium, which shows the page."""
    page.html = PAGE % url
    thread = threading.Thread(target=page.server.serve_forever, daemon=True)
    thread.start()
    chromium = start(
        chromium_command(),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"),
        *(f"--user-data-dir={directory / 'chromium'}", page.url),
    )
    try:
        yield
    finally:
        chromium.kill()
        page.server.shutdown()
        page.server.server_close()
        thread.join()


@pytest.fixture
def page() -> Page:
    return Page()


@pytest.fixture
def kvd(tmp_path: Path, page: Page) -> Iterator[Callable[..., Server]]:
    """Makes a server on a port of its own, which the page may read."""
    made: list[Server] = []

    def make(*flags: str) -> Server:
        chromium_command()
        listen = f"http://127.0.0.1:{free_port()}"
        server = Server(tmp_path / "data", "--cors", page.url, *flags, listen=listen)
        made.append(server)
        return server.start()

    yield make
    for server in made:
        server.stop()


def test_its_event_source_gets_each_event_once_over_restarts(start, tmp_path, page, kvd):
    server = kvd()
    stream = f"{server.url}/v2/keys/app?wait=true&recursive=true"
    with page_of(start, tmp_path, stream, page):
        page.opened(1)
        expected: list[str] = []

        def write(count: int) -> None:
            client = server.client()
            for number in range(count):
                expected.append(str(client.put(f"/app/{number % 7}", number).index))
            client.close()

        for restart in range(5):
            write(20)
            if restart % 2:
                server.kill()
            else:
                assert server.terminate() == 0
            server.start()
            write(20)  # before it comes back
            page.opened(restart + 2)
            write(20)
        received = page.wait_for(lambda got: bool(got) and got[-1][1] == expected[-1])
    assert [index for kind, index in received if kind == "set"] == expected
    assert {kind for kind, _ in received} == {"open", "set"}
    assert [kind for kind, _ in received].count("open") == 6


def test_its_event_source_receives_once_what_is_lost_and_goes_on(start, tmp_path, page, kvd):
    server = kvd("--event-history-limit", "10")
    stream = f"{server.url}/v2/keys/app?wait=true&recursive=true"
    with page_of(start, tmp_path, stream, page):
        page.opened(1)
        first = server.client().put("/app/x", 1).index
        page.wait_for(lambda received: bool(received) and received[-1] == ("set", str(first)))
        assert server.terminate() == 0
        server.start()
        client = server.client()
        # It comes back a second later, while or after these are written.
        indexes = [client.put("/app/x", number).index for number in range(30)]
        page.wait_for(lambda received: any(kind == "lost" for kind, _ in received))
        page.opened(3)
        indexes.append(client.put("/app/x", "last").index)
        received = page.wait_for(lambda received: received[-1] == ("set", str(indexes[-1])))
    # The page reads anew at `lost`, and is told all that comes behind it.
    (lost,) = [int(index) for kind, index in received if kind == "lost"]
    assert [index for kind, index in received if kind == "set"] == [
        str(index) for index in (first, *indexes) if index == first or index > lost
    ]
