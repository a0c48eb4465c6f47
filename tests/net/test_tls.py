"""TLS: who gets in, what they are told who do not, and certificates that change."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvd.net.certificates import common_name, is_for
from tests.http.test_limits import rejected, resident_bytes
from tests.monitoring.test_metrics import scrape
from tests.support.certs import Authority, Pair, client_context
from tests.support.server import PATIENCE_S, Server, free_port, run_kvd, running
from tests.support.waiting import wait_until

ON_ASYNCIO = (
    "import sys; sys.modules['uvloop'] = None; from kvd.__main__ import main; sys.exit(main())"
)
LOOPS = {"uvloop": ("-m", "kvd"), "asyncio": ("-c", ON_ASYNCIO)}
HTTPS = "https://127.0.0.1:0"
CONFIGURATION = 78
HANDSHAKE = b"\x16\x03\x01"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.sign("server", "127.0.0.1", "localhost")


def flags(pair: Pair, *more: str) -> tuple[str, ...]:
    return ("--cert-file", str(pair.cert), "--key-file", str(pair.key), *more)


@pytest.fixture(scope="module", params=LOOPS)
def secured(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pair: Pair
) -> Iterator[Server]:
    """A server with one https URL, on either event loop."""
    launch = LOOPS[request.param]
    directory = tmp_path_factory.mktemp("data")
    yield from running(Server(directory, *flags(pair), listen=HTTPS, launch=launch))


@pytest.fixture
def start(make_server: Callable[..., Server], pair: Pair) -> Callable[..., Server]:
    """Starts a server of one's own with a certificate."""

    def start(*more: str, listen: str = HTTPS, of: Pair = pair) -> Server:
        return make_server(*flags(of, *more), listen=listen).start()

    return start


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    return client_context(authority.cert)


def served_serial(server: Server, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with connected(server, context) as tls:
        certificate = tls.getpeercert()
    assert certificate
    return int(str(certificate["serialNumber"]), 16)


def refusal(server: Server, context: ssl.SSLContext) -> str:
    """What OpenSSL says to a client that is not let in."""
    client = server.client(tls=context)
    with pytest.raises(ssl.SSLError) as refused:
        client.request("GET", "/version")
    return refused.value.reason


def line_with(server: Server, text: str) -> str:
    """The one line of the log with a text; it is waited for."""
    server.wait_for_log(text)
    (line,) = [line for line in server.stderr.splitlines() if text in line]
    return line


class TestServing:
    def test_keys_are_served(self, secured, trusting):
        client = secured.client(tls=trusting)
        assert client.put("/a", "1").status == 201
        assert client.get("/a").json["node"]["value"] == "1"
        assert client.request("GET", "/version").status == 200
        assert client.request("GET", "/nothing").status == 404

    def test_what_is_larger_than_all_buffers_goes_both_ways(self, secured, trusting):
        client = secured.client(tls=trusting)
        value = os.urandom(2 << 20).hex()
        assert client.put("/large", value).status == 201
        assert client.get("/large").json["node"]["value"] == value

    def test_a_client_that_reads_late_gets_everything(self, secured, trusting):
        client = secured.client(tls=trusting)
        value = "x" * 100_000
        for number in range(60):
            client.put(f"/many/{number}", value)
        late = secured.client(tls=trusting)
        late._send("GET", "/v2/keys/many?recursive=true", None, None)
        # The server serves others while this one does not read.
        assert client.get("/many/1").json["node"]["value"] == value
        response = late._connection.getresponse()
        assert len(response.read()) > 60 * len(value)

    def test_watches_are_told_at_once(self, secured, trusting):
        client = secured.client(tls=trusting)
        poll = secured.open("/v2/keys/w?wait=true", trusting)
        stream = secured.open("/v2/keys/w?wait=true&stream=true", trusting)
        for value in "12":
            client.put("/w", value)
            assert stream.event()["node"]["value"] == value
        assert poll.event()["node"]["value"] == "1"

    def test_pipelined_requests_are_answered_in_order(self, secured, trusting):
        request = b"GET /v2/keys/none%d HTTP/1.1\r\nHost: h\r\n\r\n"
        with connected(secured, trusting) as tls:
            tls.sendall(b"".join(request % n for n in range(100)))
            answers = tls.makefile("rb")
            for number in range(100):
                response = read_answer(answers)
                assert f"/none{number}".encode() in response

    def test_the_end_of_an_answer_without_a_length_is_told(self, secured, trusting):
        with connected(secured, trusting) as tls:
            tls.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            # Without a close_notify this raises: it might have been cut off.
            assert b"etcdserver" in tls.makefile("rb").read()

    def test_a_refused_client_gets_to_read_why(self, secured, trusting):
        with connected(secured, trusting) as tls:
            tls.sendall(b"nonsense\r\n\r\n" + b"x" * 100_000)
            assert tls.makefile("rb").read().startswith(b"HTTP/1.1 400 Bad Request")

    def test_a_client_may_end_its_half_before_it_is_answered(self, secured, trusting):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        half = trusting.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", secured.port), PATIENCE_S) as plain:
            exchange(plain, incoming, outgoing, half.do_handshake)
            half.write(b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n")
            with contextlib.suppress(ssl.SSLWantReadError):
                half.unwrap()
            plain.sendall(outgoing.read())
            plain.shutdown(socket.SHUT_WR)
            answer = b""
            while piece := plain.recv(65536):
                incoming.write(piece)
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while piece := half.read(65536):
                    answer += piece
        assert b"etcdserver" in answer

    def test_a_connection_goes_on_after_others_went_wrong(self, secured, trusting):
        client = secured.client(tls=trusting)
        assert client.request("GET", "/version").status == 200
        for garbage in (
            HANDSHAKE,
            HANDSHAKE + b"\xff" * 5000,
            b"\x80\x00",
            b"\x15\x03\x01\x00\x02\x02\x28",
        ):
            with socket.create_connection(("127.0.0.1", secured.port), PATIENCE_S) as plain:
                plain.sendall(garbage)
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(65536):
                    pass
        assert client.request("GET", "/version").status == 200

    def test_bytes_that_were_changed_on_the_way_end_their_connection_alone(self, secured, trusting):
        client = secured.client(tls=trusting)
        client.put("/intact", "1")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = trusting.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", secured.port), PATIENCE_S) as plain:
            exchange(plain, incoming, outgoing, tls.do_handshake)
            tls.write(b"DELETE /v2/keys/intact HTTP/1.1\r\nHost: h\r\n\r\n")
            record = bytearray(outgoing.read())
            record[-1] ^= 1
            plain.sendall(record)
            with contextlib.suppress(ConnectionError):
                while plain.recv(65536):
                    pass
        assert client.get("/intact").json["node"]["value"] == "1"


def client_hello() -> bytes:
    """What a client begins with."""
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def connected(
    server: Server, context: ssl.SSLContext
) -> contextlib.AbstractContextManager[ssl.SSLSocket]:
    plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
    tls = context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    return contextlib.closing(tls)


def read_answer(answers) -> bytes:
    """One answer that says its length."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += answers.readline()
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return answers.read(length)


def exchange(plain: socket.socket, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, step) -> None:
    """Send and receive until a step of OpenSSL is done."""
    while True:
        try:
            step()
        except ssl.SSLWantReadError:
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(65536))
        else:
            plain.sendall(outgoing.read())
            return


class TestClientsThatGoWrong:
    def test_plain_http_is_answered_at_once_with_one_line_of_log(self, start, trusting):
        server = start()
        for _ in range(5):
            answer = server.client().request("GET", "/version")
            assert answer.status == 400
            assert b"HTTPS" in answer.body
        assert server.client(tls=trusting).request("GET", "/version").status == 200
        line = line_with(server, "spoke no TLS")
        assert "WARNING 127.0.0.1:" in line
        assert server.url in line

    def test_tls_to_a_plain_port_fails_at_once_with_one_line_of_log(self, fresh_server, trusting):
        for _ in range(5):
            assert refusal(fresh_server, trusting) == "WRONG_VERSION_NUMBER"
        assert fresh_server.client().request("GET", "/version").status == 200
        line = line_with(fresh_server, "spoke TLS")
        assert f"127.0.0.1:{fresh_server.port}, where http://" in line

    @pytest.mark.parametrize("loop", LOOPS)
    def test_one_port_may_speak_both(self, trusting, make_server, pair, loop):
        port = free_port()
        both = f"http://127.0.0.1:{port},https://127.0.0.1:{port}"
        server = make_server(*flags(pair), listen=both, launch=LOOPS[loop]).start()
        assert server.client(tls=trusting).put("/a", "1").status == 201
        assert server.client(server.urls[0]).get("/a").json["node"]["value"] == "1"
        assert "WARNING" not in server.stderr

    def test_a_handshake_that_does_not_come_ends(self, start):
        server = start("--header-timeout-s", "0.2")
        with (
            socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as silent,
            socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as begun,
        ):
            begun.sendall(HANDSHAKE + b"\x01\x00")
            for client in (silent, begun):
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
        server.wait_for_log("no handshake in 0.2 s")

    def test_connections_beyond_the_limit_are_told_so(self, start, trusting):
        server = start("--max-connections", "1", "--max-watchers", "1")
        with connected(server, trusting) as only:
            only.sendall(b"GET /v2/keys/w?wait=true HTTP/1.1\r\nHost: h\r\n\r\n")
            assert only.recv(100).startswith(b"HTTP/1.1 200 ")
            with connected(server, trusting) as other:
                assert b"503 Service Unavailable: too many" in other.makefile("rb").read()

    def test_the_oldest_handshake_gives_way(self, start, trusting):
        server = start("--max-connections", "3")
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(60):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            for _ in range(5):
                assert is_served(server, trusting)
            assert first.recv(1) == b""

    @pytest.mark.parametrize("hello", [b"", None, HANDSHAKE], ids=["silent", "hello", "begun"])
    def test_handshakes_without_end_keep_out_nobody(self, start, trusting, hello):
        """A newcomer gives way neither to one that waits for longer nor to one that came later."""
        server = start("--max-connections", "40")
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                for _ in range(20):
                    plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
                    stack.enter_context(plain).sendall(client_hello() if hello is None else hello)
                assert is_served(server, trusting)

    def test_who_asks_for_health_is_let_in_beside_watches_and_handshakes(self, start, trusting):
        server = start("--max-connections", "3", "--max-watchers", "3")
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                watch = stack.enter_context(connected(server, trusting))
                watch.sendall(b"GET /v2/keys/w?wait=true HTTP/1.1\r\nHost: h\r\n\r\n")
                assert watch.recv(100).startswith(b"HTTP/1.1 200 ")
            for _ in range(5):
                for _ in range(20):
                    plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
                    stack.enter_context(plain)
                client = server.client(tls=trusting)
                assert client.request("GET", "/health").status == 200

    def test_a_connection_keeps_little_of_what_went_through_it(self, secured, trusting):
        client = secured.client(tls=trusting)
        client.put("/large", "v" * 60_000)
        padding = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1000) for n in range(55))
        ask = b"GET /v2/keys/large HTTP/1.1\r\nHost: h\r\n" + padding + b"\r\n"

        def used(connections: int) -> int:
            with contextlib.ExitStack() as stack:
                for _ in range(connections):
                    tls = stack.enter_context(connected(secured, trusting))
                    tls.sendall(ask)
                    read_answer(tls.makefile("rb"))
                return resident_bytes(secured)

        # OpenSSL has 20 KB of each. With what it was given at once, it were a hundred more.
        assert used(300) - used(10) < 290 * 60_000

    def test_unfinished_records_are_counted(self, start, trusting):
        mib = 1 << 20
        server = start("--max-buffered-bytes", str(10 * mib))
        client = server.client(tls=trusting)
        with contextlib.ExitStack() as stack:
            for number in range(700):
                tls = stack.enter_context(connected(server, trusting))
                plain = stack.enter_context(socket.socket(fileno=tls.detach()))
                plain.sendall(b"\x17\x03\x03\x40\x00" + b"x" * 16_000)
                if number % 50 == 0:
                    assert client.put("/k", "v" * 10_000).status in (200, 201)
            wait_until(lambda: rejected(client, "too_much_at_once") > 0)
            held = scrape(client)["kvd_buffered_request_bytes"]
            assert 5 * mib < held <= 10 * mib
        wait_until(lambda: scrape(client)["kvd_buffered_request_bytes"] == 0)

    @pytest.mark.parametrize(
        ("more", "spoken"),
        [
            ((), "TLSv1_1"),
            (("--tls-min-version", "TLS1.3"), "TLSv1_2"),
            (("--tls-max-version", "TLS1.2"), "TLSv1_3"),
        ],
        ids=["1.1", "below the lowest", "above the highest"],
    )
    @pytest.mark.filterwarnings("ignore:.*TLSv1_1 is deprecated")
    def test_a_version_that_is_not_spoken_is_refused(self, start, trusting, more, spoken):
        server = start(*more)
        trusting.set_ciphers("ALL:@SECLEVEL=0")  # or this machine's OpenSSL has no TLS 1.1 to try
        trusting.minimum_version = trusting.maximum_version = ssl.TLSVersion[spoken]
        assert refusal(server, trusting) == "TLSV1_ALERT_PROTOCOL_VERSION"

    def test_cipher_suites_are_those_that_are_named(self, start, trusting):
        suites = "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,TLS_AES_128_GCM_SHA256"
        server = start("--cipher-suites", suites)
        trusting.maximum_version = ssl.TLSVersion.TLSv1_2
        with connected(server, trusting) as tls:
            assert tls.cipher()[0] == "ECDHE-ECDSA-CHACHA20-POLY1305"
        trusting.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        assert refusal(server, trusting) == "SSLV3_ALERT_HANDSHAKE_FAILURE"


def is_served(server: Server, context: ssl.SSLContext) -> bool:
    try:
        return server.client(tls=context).request("GET", "/version").status == 200
    except (OSError, http.client.HTTPException):
        return False


class TestClientCertificates:
    def test_only_those_of_the_authority_get_in(self, start, authority, tmp_path):
        server = start("--trusted-ca-file", str(authority.cert))
        known = client_context(authority.cert, authority.sign("alice"))
        assert server.client(tls=known).request("GET", "/version").status == 200
        # The alert that says so comes with the first read, in TLS 1.3.
        unknown = client_context(authority.cert)
        assert refusal(server, unknown) == "TLSV13_ALERT_CERTIFICATE_REQUIRED"
        stranger = client_context(
            authority.cert, Authority(tmp_path / "other", "stranger").sign("alice")
        )
        assert refusal(server, stranger) == "TLSV1_ALERT_UNKNOWN_CA"
        # The second failure is not told within ten seconds of the first.
        line = line_with(server, "no TLS with 127.0.0.1:")
        assert "peer did not return a certificate" in line

    def test_a_revoked_one_does_not_get_in(self, start, authority):
        alice, mallory = authority.sign("alice"), authority.sign("mallory")
        revoked = authority.revoke(mallory)
        argv = ("--trusted-ca-file", str(authority.cert), "--client-crl-file", str(revoked))
        server = start(*argv)
        for name, expected in ((alice, True), (mallory, False)):
            assert is_served(server, client_context(authority.cert, name)) is expected
        line = line_with(server, "no TLS with")
        assert "certificate was refused: certificate revoked" in line

    def test_one_for_another_host_does_not_get_in(self, start, authority):
        argv = ("--trusted-ca-file", str(authority.cert))
        server = start(*argv, "--client-cert-allowed-hostname", "good.example")
        good = client_context(authority.cert, authority.sign("good", "good.example"))
        bad = client_context(authority.cert, authority.sign("bad", "bad.example"))
        assert is_served(server, good)
        assert not is_served(server, bad)
        line = line_with(server, "no TLS with")
        assert line.endswith("the client's certificate is not for good.example")

    def test_the_common_name_is_a_user_where_it_is_asked_for(self, start, authority):
        argv = ("--trusted-ca-file", str(authority.cert))
        root, alice, nobody = (
            client_context(authority.cert, authority.sign(name))
            for name in ("root", "alice", "nobody")
        )
        server = start(*argv, "--client-cert-auth")
        client = server.client(tls=root)
        for path, body in (
            ("users/root", {"user": "root", "password": "secret"}),
            ("users/alice", {"user": "alice", "password": "secret", "roles": ["own"]}),
            ("roles/own", {"role": "own", "permissions": {"kv": {"read": [], "write": ["/a"]}}}),
            ("enable", {}),
        ):
            answer = client.request("PUT", f"/v2/auth/{path}", json.dumps(body))
            assert answer.status in (200, 201), answer.body
        guest = {"role": "guest", "revoke": {"kv": {"read": [], "write": ["/*"]}}}
        assert client.request("PUT", "/v2/auth/roles/guest", json.dumps(guest)).status == 200
        assert server.client(tls=alice).put("/a", "1").status == 201
        assert server.client(tls=alice).put("/b", "1").status == 401
        assert server.client(tls=nobody).put("/a", "1").status == 401
        # A name and a password count more than the certificate.
        given = {"Authorization": "Basic " + b64encode(b"root:secret").decode()}
        answer = server.client(tls=alice).request("PUT", "/v2/keys/b", "value=1", given)
        assert answer.status == 201
        server.terminate()
        # Without the flag a certificate lets its client in, and that is all.
        server.flags = server.flags[:-1]
        server.start()
        assert server.client(tls=alice).put("/a", "2").status == 401

    def test_the_common_name_is_the_one_of_the_subject(self):
        subject = ((("organizationName", "x"),), (("commonName", "alice"), ("commonName", "bob")))
        assert common_name({"subject": subject}) == "alice"
        assert common_name({"subject": ((("organizationName", "x"),),)}) == ""
        assert common_name({}) == ""

    @pytest.mark.parametrize(
        ("kind", "name", "host", "expected"),
        [
            ("DNS", "a.example", "a.example", True),
            ("DNS", "A.Example", "a.example", True),
            ("DNS", "*.example", "a.example", True),
            ("DNS", "*.example", "a.b.example", False),
            ("DNS", "*.example", "example", False),
            ("DNS", "b.example", "a.example", False),
            ("IP Address", "10.0.0.1", "10.0.0.1", True),
            ("IP Address", "0:0:0:0:0:0:0:1", "::1", True),
            ("IP Address", "10.0.0.1", "a.example", False),
            ("DNS", "10.0.0.1", "10.0.0.2", False),
            ("email", "a.example", "a.example", False),
        ],
    )
    def test_whom_a_certificate_is_for(self, kind, name, host, expected):
        assert is_for({"subjectAltName": ((kind, name),)}, host) is expected


class TestFilesThatChange:
    @pytest.fixture
    def own(self, tmp_path: Path) -> Authority:
        return Authority(tmp_path / "own")

    def test_a_signal_has_them_read_again_for_new_connections(self, start, own):
        first = own.sign("server", "127.0.0.1")
        server, context = start(of=first), client_context(own.cert)
        old = server.client(tls=context)
        assert old.request("GET", "/version").status == 200
        second = own.sign("server", "127.0.0.1")
        server.signal(signal.SIGHUP)
        server.wait_for_log(f"read again: {second.cert}, {second.key}")
        assert served_serial(server, context) == second.serial != first.serial
        assert old.request("GET", "/version").status == 200

    def test_bad_ones_change_nothing_but_the_log_by_one_line(self, start, own):
        pair = own.sign("server", "127.0.0.1")
        server, context = start(of=pair), client_context(own.cert)
        pair.cert.write_text("nonsense")
        server.signal(signal.SIGHUP)
        server.wait_for_log("the certificates stay as they were")
        for _ in range(5):
            assert served_serial(server, context) == pair.serial
        line = line_with(server, "the certificates stay")
        assert f"ERROR the certificates stay as they were: {pair.cert} and {pair.key}" in line
        again = own.sign("server", "127.0.0.1")
        wait_until(lambda: served_serial(server, context) == again.serial)

    def test_they_are_noticed_without_a_signal(self, start, own):
        first = own.sign("server", "127.0.0.1")
        server, context = start(of=first), client_context(own.cert)
        second = own.sign("server", "127.0.0.1")
        wait_until(lambda: served_serial(server, context) == second.serial)

    def test_a_signal_without_certificates_ends_nothing(self, fresh_server):
        fresh_server.signal(signal.SIGHUP)
        fresh_server.wait_for_log("no certificates to read again")
        assert fresh_server.client().request("GET", "/version").status == 200


class TestFilesThatAreNoGood:
    def refused(self, tmp_path: Path, *argv: str) -> str:
        ended = run_kvd("--data-dir", str(tmp_path / "d"), "--listen-client-urls", HTTPS, *argv)
        assert ended.returncode == CONFIGURATION, ended.stderr
        (line,) = ended.stderr.splitlines()
        assert not (tmp_path / "d").exists()
        return line

    def test_a_missing_one_is_named(self, tmp_path, pair):
        missing = tmp_path / "missing.pem"
        argv = ("--cert-file", str(missing), "--key-file", str(pair.key))
        assert f"{missing}: No such file or directory" in self.refused(tmp_path, *argv)
        argv = flags(pair, "--trusted-ca-file", str(missing))
        assert f"{missing}: No such file or directory" in self.refused(tmp_path, *argv)

    def test_what_is_no_certificate_is_named(self, tmp_path, pair):
        nonsense = tmp_path / "nonsense.pem"
        nonsense.write_text("nonsense")
        argv = ("--cert-file", str(nonsense), "--key-file", str(pair.key))
        line = self.refused(tmp_path, *argv)
        assert f"{nonsense} and {pair.key}: expected a certificate" in line
        assert line.endswith("OpenSSL says: PEM lib")
        argv = flags(pair, "--trusted-ca-file", str(nonsense))
        assert f"{nonsense}: expected certificates in PEM" in self.refused(tmp_path, *argv)

    def test_a_key_of_another_certificate_is_named(self, tmp_path, pair, authority):
        other = authority.sign("other")
        argv = ("--cert-file", str(pair.cert), "--key-file", str(other.key))
        line = self.refused(tmp_path, *argv)
        assert f"{other.key}: is not the private key of {pair.cert}" in line

    def test_a_key_that_is_too_small_is_named(self, tmp_path, authority):
        small = authority.sign("small", "127.0.0.1", rsa_bits=1024)
        assert f"{small.cert}: its key is too small" in self.refused(tmp_path, *flags(small))

    def test_an_encrypted_key_is_refused_instead_of_asking_for_its_password(
        self, tmp_path, authority
    ):
        locked = authority.sign("locked", "127.0.0.1", password=b"secret")
        assert f"{locked.key}: the private key is encrypted" in self.refused(
            tmp_path, *flags(locked)
        )

    def test_a_key_that_everybody_may_read_is_warned_of(self, start, authority, trusting):
        pair = authority.sign("careless", "127.0.0.1")
        pair.key.chmod(0o644)
        server = start(of=pair)
        assert server.client(tls=trusting).request("GET", "/version").status == 200
        line = line_with(server, "WARNING")
        assert f"{pair.key}: every user of this machine may read" in line


class TestSelfSigned:
    def test_it_is_made_once_and_is_for_this_machine(self, make_server):
        server = make_server("--auto-tls", listen=HTTPS).start()
        cert, key = (server.data_dir / "tls" / name for name in ("cert.pem", "key.pem"))
        assert {path.stat().st_mode & 0o777 for path in (cert, key)} == {0o600}
        context = client_context(cert)
        for host in ("127.0.0.1", "localhost"):
            client = server.client(server.url.replace("127.0.0.1", host), tls=context)
            assert client.request("GET", "/version").status == 200
        made = cert.read_bytes()
        server.kill()
        server.start()
        assert cert.read_bytes() == made
        # What a start that was cut short has left behind is made anew.
        server.terminate()
        key.unlink()
        server.start()
        assert server.client(tls=client_context(cert)).request("GET", "/version").status == 200
        assert cert.read_bytes() != made

    def test_without_the_package_for_it_the_start_is_refused_in_one_line(self, make_server):
        without = ON_ASYNCIO.replace("uvloop", "cryptography")
        server = make_server("--auto-tls", listen=HTTPS, launch=("-c", without))
        with pytest.raises(AssertionError, match="kvd does not listen"):
            server.start()
        assert server.wait() == CONFIGURATION
        (line,) = server.stderr.splitlines()
        assert "--auto-tls needs the package cryptography: pip install 'kvd[tls]'" in line


@pytest.mark.parametrize("own", [False, True], ids=["given", "self-signed"])
def test_metrics_are_served_with_tls_too(make_server, pair, authority, own):
    port = free_port()
    how = ("--auto-tls",) if own else flags(pair)
    server = make_server(*how, "--listen-metrics-urls", f"https://127.0.0.1:{port}").start()
    context = client_context(server.data_dir / "tls" / "cert.pem" if own else authority.cert)
    client = server.client(f"https://127.0.0.1:{port}", tls=context)
    assert client.request("GET", "/readyz").status == 200


def test_a_stop_ends_watches_and_connections_properly(start, trusting):
    server = start()
    watch = server.open("/v2/keys/w?wait=true", trusting)
    with connected(server, trusting) as idle:
        idle.sendall(b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n")
        answers = idle.makefile("rb")
        assert b"etcdserver" in read_answer(answers)
        assert server.terminate() == 0
        assert watch.body() == b""
        # A close_notify, or this raises.
        assert answers.read() == b""
