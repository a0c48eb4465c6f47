"""Certificates: of clients, reloaded, unusable, self-signed."""

import json
import signal
from base64 import b64encode
from pathlib import Path

import pytest

from kvd.net.certificates import common_name, is_for
from tests.support.certs import Authority, client_context
from tests.support.log_texts import log_text
from tests.support.server import run_kvd
from tests.support.tls import (
    CONFIGURATION,
    HTTPS,
    ON_ASYNCIO,
    flags,
    is_served,
    line_with,
    refusal,
    served_serial,
)
from tests.support.waiting import wait_until


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
        line = line_with(server, "TLS handshake with 127.0.0.1:")
        assert "peer did not return a certificate" in line

    def test_a_revoked_one_does_not_get_in(self, start, authority):
        alice, mallory = authority.sign("alice"), authority.sign("mallory")
        revoked = authority.revoke(mallory)
        argv = ("--trusted-ca-file", str(authority.cert), "--client-crl-file", str(revoked))
        server = start(*argv)
        for name, expected in ((alice, True), (mallory, False)):
            assert is_served(server, client_context(authority.cert, name)) is expected
        line = line_with(server, "TLS handshake with")
        assert "certificate was refused: certificate revoked" in line

    def test_one_for_another_host_does_not_get_in(self, start, authority):
        argv = ("--trusted-ca-file", str(authority.cert))
        server = start(*argv, "--client-cert-allowed-hostname", "good.example")
        good = client_context(authority.cert, authority.sign("good", "good.example"))
        bad = client_context(authority.cert, authority.sign("bad", "bad.example"))
        assert is_served(server, good)
        assert not is_served(server, bad)
        line = line_with(server, "TLS handshake with")
        assert line.endswith("the client's certificate is not for good.example")

    def test_the_common_name_is_a_user_where_it_is_asked_for(self, start, authority):
        argv = ("--trusted-ca-file", str(authority.cert))
        root, alice, other = (
            client_context(authority.cert, authority.sign(name))
            for name in ("root", "alice", "other")
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
        assert server.client(tls=other).put("/a", "1").status == 401
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
    def test_the_hosts_that_a_certificate_is_for(self, kind, name, host, expected):
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
        server.wait_for_log(f"certificates reloaded: {second.cert}, {second.key}")
        assert served_serial(server, context) == second.serial != first.serial
        assert old.request("GET", "/version").status == 200

    def test_bad_ones_change_nothing_but_the_log_by_one_line(self, start, own):
        pair = own.sign("server", "127.0.0.1")
        server, context = start(of=pair), client_context(own.cert)
        pair.cert.write_text("nonsense")
        server.signal(signal.SIGHUP)
        server.wait_for_log(log_text("certificate reload failed, keeping the current one"))
        for _ in range(5):
            assert served_serial(server, context) == pair.serial
        line = line_with(server, "ERROR certificate reload failed")
        assert f", keeping the current one: {pair.cert} and {pair.key}" in line
        again = own.sign("server", "127.0.0.1")
        wait_until(lambda: served_serial(server, context) == again.serial)

    def test_they_are_noticed_without_a_signal(self, start, own):
        first = own.sign("server", "127.0.0.1")
        server, context = start(of=first), client_context(own.cert)
        second = own.sign("server", "127.0.0.1")
        wait_until(lambda: served_serial(server, context) == second.serial)

    def test_a_signal_without_certificates_ends_nothing(self, fresh_server):
        fresh_server.signal(signal.SIGHUP)
        fresh_server.wait_for_log("no certificates to reload")
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

    def test_a_key_that_every_user_may_read_is_warned_of(self, start, authority, trusting):
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
