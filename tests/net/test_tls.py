"""TLS: requests, watches and large answers over it, on both event loops."""

import contextlib
import os
import socket
import ssl

import pytest

from tests.support.certs import client_context
from tests.support.server import PATIENCE_S, free_port
from tests.support.tls import HANDSHAKE, connected, exchange, flags, read_answer


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

    def test_watches_receive_events_at_once(self, secured, trusting):
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

    def test_the_end_of_an_answer_without_a_length_is_sent(self, secured, trusting):
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
