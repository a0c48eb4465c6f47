"""The page below a path of a proxy, over TLS with a certificate, and by IPv6."""

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.certs import Authority
from tests.support.guarded import ROOT, ask_for_users
from tests.support.server import PATIENCE_S, Server

expect = pytest.importorskip("playwright.sync_api").expect
expect.set_options(timeout=PATIENCE_S * 1000)

pytestmark = pytest.mark.ui

PREFIX = "/tools/kvd"


@pytest.fixture
def proxy(server: Server) -> Iterator[str]:
    """A proxy that shows the server below a path; nothing else is there."""

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            if not self.path.startswith(f"{PREFIX}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))) or None
            inner = http.client.HTTPConnection("127.0.0.1", server.port)
            inner.request(self.command, self.path.removeprefix(PREFIX), body, dict(self.headers))
            answer = inner.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            try:
                while part := answer.read1():
                    self.wfile.write(part)
            except OSError:
                pass  # the browser has gone
            finally:
                inner.close()

        def do_GET(self) -> None:
            self._pass_on()

        def do_PUT(self) -> None:
            self._pass_on()

        def log_message(self, *_: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{served.server_port}{PREFIX}"
    served.shutdown()
    thread.join()
    served.socket.close()


def use(page, client_put) -> None:
    expect(page.locator(".code")).to_have_text("1")
    client_put("2")
    expect(page.locator(".code")).to_have_text("2")
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("textbox", name="Value of").fill("3")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("Saved at index")).to_be_visible()
    expect(page.locator(".code")).to_have_text("3")


# The proxy is named before `visit`: it has to be there until the pages are closed.
def test_below_a_path_of_a_proxy(proxy, visit, client):
    client.put("/proxied", "1")
    visited = visit(proxy)
    page = visited.page
    page.goto(f"{proxy}/ui#k/proxied")
    use(page, lambda value: client.put("/proxied", value))
    page.get_by_role("link", name="Status").click()
    expect(page.get_by_role("link", name="/metrics").first).to_be_visible()
    assert page.evaluate("new URL(document.querySelector('a[href$=metrics]').href).pathname") == (
        f"{PREFIX}/metrics"
    )


def test_by_ipv6(visit, make_server):
    server = make_server(listen="http://[::1]:0").start()
    client = server.client()
    client.put("/six", "1")
    page = visit(server.url).go("#k/six")
    use(page, lambda value: client.put("/six", value))


def test_over_tls_as_the_user_of_a_certificate(visit, make_server, tmp_path):
    authority = Authority(tmp_path / "authority")
    own = authority.sign("kvd", "127.0.0.1")
    al = authority.sign("al")
    flags = ("--cert-file", str(own.cert), "--key-file", str(own.key))
    flags += ("--trusted-ca-file", str(authority.cert), "--client-cert-auth")
    listen = "https://127.0.0.1:0,http://127.0.0.1:0"
    server = make_server(*flags, listen=listen).start()
    secure = next(url for url in server.urls if url.startswith("https"))
    client = server.client(next(url for url in server.urls if url.startswith("http:")))
    ask_for_users(client)

    def put(value: str) -> None:
        assert client.request("PUT", "/v2/keys/al/x", {"value": value}, ROOT).status in (200, 201)

    put("1")
    certificate = {"origin": secure, "certPath": str(al.cert), "keyPath": str(al.key)}
    visited = visit(secure, ignore_https_errors=True, client_certificates=[certificate])
    page = visited.go("#k/al/x")
    expect(page.get_by_text("al", exact=True).first).to_be_visible()
    use(page, put)
