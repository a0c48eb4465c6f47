"""TLS on memory: a client's bytes in, the server's out, with no socket between."""

import ssl

import pytest

from kvd.net.tls_session import PLAIN_BYTES_MAX, TlsSession
from tests.support.certs import Authority


class Client:
    """The client's end, on memory as well."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def step(self, act):
        """Go on with a handshake or a read; its result, or None if more bytes have to come."""
        try:
            return act() or True
        except ssl.SSLWantReadError:
            return None


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    pair = Authority(tmp_path_factory.mktemp("authority")).sign("server", "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    return context


@pytest.fixture
def client():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return Client(context)


@pytest.fixture
def session(context):
    session = TlsSession()
    session.begin(context)
    return session


def shake(client, session, size=1 << 20):
    """Let both ends shake hands, the client's bytes coming in pieces of a size."""
    is_done = False
    while not is_done:
        client.step(client.ssl.do_handshake)
        sent = client.outgoing.read()
        assert sent, "neither end has more to say"
        for start in range(0, len(sent), size):
            session.receive(sent[start : start + size])
            if session.has_record:
                is_done = session.shake()
        client.incoming.write(session.to_send())
    client.step(client.ssl.do_handshake)


def received(session):
    """All that the session can decrypt now."""
    buffer = memoryview(bytearray(PLAIN_BYTES_MAX))
    found = b""
    while session.feed():
        found += bytes(buffer[: session.read(buffer)])
    return found


@pytest.mark.parametrize("size", [1, 100, 1 << 20])
def test_a_handshake_is_done_however_its_bytes_are_split(client, session, size):
    shake(client, session, size)
    assert client.ssl.version() == session.ssl_object.version()


@pytest.mark.parametrize("size", [1, 1000, 5000, 40_000])
def test_what_either_end_sends_reaches_the_other(client, session, size):
    shake(client, session)
    data = bytes(range(256)) * (size // 256 + 1)
    client.ssl.write(data)
    session.receive(client.outgoing.read())
    assert received(session) == data
    client.incoming.write(session.encrypt(data))
    found = b""
    while len(found) < len(data):
        found += client.ssl.read(PLAIN_BYTES_MAX)
    assert found == data


def test_a_record_is_kept_until_it_has_come_whole(client, session):
    shake(client, session)
    client.ssl.write(b"hello")
    record = client.outgoing.read()
    for byte in record[:-1]:
        session.receive(bytes((byte,)))
        assert not session.has_record
        assert not session.feed()
    assert session.received_bytes == len(record) - 1
    session.receive(record[-1:])
    assert session.has_record
    assert received(session) == b"hello"
    assert session.received_bytes == 0


def test_a_record_that_is_too_long_is_refused_by_its_header(client, session):
    shake(client, session)
    session.receive(b"\x17\x03\x03\xff\xff")
    assert session.has_record
    with pytest.raises(ssl.SSLError):
        received(session)


def test_what_is_no_handshake_fails_with_an_alert(session):
    session.receive(b"\x16\x03\x01\x00\x05hello")
    with pytest.raises(ssl.SSLError):
        session.shake()
    assert session.to_send()[:1] == b"\x15"


def test_each_end_learns_that_the_other_has_ended(client, session):
    shake(client, session)
    session.end()
    client.incoming.write(session.to_send())
    assert client.ssl.read(1) == b""
    client.step(client.ssl.unwrap)
    session.receive(client.outgoing.read())
    with pytest.raises(ssl.SSLZeroReturnError):
        received(session)


def test_nothing_is_kept_of_what_is_forgotten(client, session):
    shake(client, session)
    client.ssl.write(b"hello")
    session.receive(client.outgoing.read())
    session.forget_received()
    assert session.received_bytes == 0
    assert not session.feed()


def test_a_session_that_has_not_begun_has_nothing_to_send():
    session = TlsSession()
    session.end()
    assert session.to_send() == b""
