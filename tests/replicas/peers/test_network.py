"""Links by TCP and TLS, to the URLs that replicas give."""

import asyncio
import socket
import ssl
from dataclasses import dataclass

import pytest

from kvd.config.urls import ListenUrl
from kvd.replicas.links import Hello, LinkError, LinkRefused
from kvd.replicas.peers.network import PeerAddressUnavailable, TcpNetwork
from kvd.replicas.peers.tls import LinkTls
from tests.support.certs import Authority

SECRET = bytes(range(32))
ONE, OTHER = Hello(1, "1", 5), Hello(2, "1", 5)


@dataclass
class Files:
    cert_file: str = ""
    key_file: str = ""
    trusted_ca_file: str = ""
    client_cert_auth: bool = False


def signed(authority, name="h1", *, file="", both=False):
    pair = authority.sign(name, "127.0.0.1", "localhost", file=file)
    return Files(str(pair.cert), str(pair.key), str(authority.cert), both)


async def echo(link):
    name, fields = await link.receive()
    link.send(name, *fields)
    await link.receive()


def networks(main, *urls, tls=None, dialing=None):
    """Run `main(ports, network)` beside one that listens."""

    async def bounded():
        listening = TcpNetwork(SECRET, ONE, tls)
        await listening.listen(urls, echo)
        network = TcpNetwork(SECRET, OTHER, dialing)
        try:
            async with asyncio.timeout(60):
                await main(listening.ports, network)
        finally:
            await network.close()
            await listening.close()

    asyncio.run(bounded())


async def passes(network, url):
    link = await network.dial(url)
    link.send("applied", 7, 6)
    assert await link.receive() == ("applied", [7, 6])
    assert link.peer == ONE
    link.close()
    return link


def test_every_url_is_listened_on():
    async def main(ports, network):
        for port in ports:
            await passes(network, f"http://127.0.0.1:{port}")

    networks(main, ListenUrl("127.0.0.1"), ListenUrl("localhost"))


def test_a_port_at_which_nothing_listens_differs_from_what_else_fails():
    async def main(ports, network):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(LinkRefused, match=f"no link to 127.0.0.1:{port}"):
            await network.dial(f"http://127.0.0.1:{port}")
        with pytest.raises(LinkError) as failed:
            await network.dial("http://127.0.0.1.invalid:1")
        assert not isinstance(failed.value, LinkRefused)

    networks(main)


@pytest.mark.parametrize(
    "url", ["h1:2380", "http://h1", "ftp://h1:1", "http://[h1", "http://h1:99999", ""]
)
def test_what_is_no_url_of_a_replica_is_named(url):
    async def main(_ports, network):
        with pytest.raises(LinkError, match="is no URL of a replica"):
            await network.dial(url)

    networks(main)


def test_links_by_tls_check_both_sides(tmp_path):
    authority = Authority(tmp_path / "own")
    strangers = Authority(tmp_path / "strange")
    own = LinkTls(signed(authority, both=True))

    async def main(ports, network):
        url = f"https://127.0.0.1:{ports[0]}"
        await passes(network, url)
        nothing = Files(trusted_ca_file=str(authority.cert))
        for files in (signed(strangers), nothing):
            with pytest.raises(LinkError):
                await TcpNetwork(SECRET, OTHER, LinkTls(files)).dial(url)
        with pytest.raises(LinkError, match="needs --peer-cert-file"):
            await TcpNetwork(SECRET, OTHER).dial(url)
        with pytest.raises(LinkError):
            await network.dial(url.replace("https", "http"))

    networks(main, ListenUrl("127.0.0.1", scheme="https"), tls=own, dialing=own)


def test_a_host_that_is_not_in_the_certificate_is_refused(tmp_path):
    authority = Authority(tmp_path)
    pair = authority.sign("h1", "h1.example")
    files = Files(str(pair.cert), str(pair.key), str(authority.cert))
    own = LinkTls(files)

    async def main(ports, network):
        with pytest.raises(LinkError, match="certificate"):
            await network.dial(f"https://127.0.0.1:{ports[0]}")

    networks(main, ListenUrl("127.0.0.1", scheme="https"), tls=own, dialing=own)


def test_a_renewed_certificate_is_used_without_a_restart(tmp_path):
    authority = Authority(tmp_path)
    listening = LinkTls(signed(authority, both=True))

    async def main(ports, network):
        url = f"https://127.0.0.1:{ports[0]}"

        async def serial():
            link = await passes(network, url)
            found = link._writer.get_extra_info("ssl_object").getpeercert()
            return int(found["serialNumber"], 16)

        before = await serial()
        pair = authority.sign("h1", "127.0.0.1")
        assert before != pair.serial
        assert await serial() == pair.serial
        pair.cert.write_text("no certificate")
        assert await serial() == pair.serial

    networks(main, ListenUrl("127.0.0.1", scheme="https"), tls=listening, dialing=listening)


def test_a_certificate_that_cannot_be_read_is_an_error_of_the_start(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        LinkTls(Files(str(tmp_path / "none"), str(tmp_path / "none")))
    (tmp_path / "wrong").write_text("no certificate")
    with pytest.raises(ssl.SSLError):
        LinkTls(Files(str(tmp_path / "wrong"), str(tmp_path / "wrong")))


def test_an_address_that_is_taken_is_named_with_its_flag():
    async def main(ports, network):
        (port,) = ports
        with pytest.raises(PeerAddressUnavailable) as refusal:
            await network.listen([ListenUrl("127.0.0.1", port)], echo)
        assert refusal.value.exit_status == 69
        assert str(refusal.value) == (
            f"--listen-peer-urls: cannot listen on 127.0.0.1 port {port}: Address already in use"
        )

    networks(main, ListenUrl("127.0.0.1"))
