"""The log in an etcd whose administrator has done something: users, TLS, a quota, a version."""

import asyncio
import logging
import os
import shutil
import subprocess

import pytest

from kvd.replicas.engine import (
    Access,
    Candidate,
    EngineFull,
    EngineRefused,
    Frame,
    OtherHistory,
)
from kvd.replicas.etcd import grpc, tail
from kvd.replicas.etcd.client import EtcdClient
from kvd.replicas.etcd.log import EtcdLog
from kvd.replicas.etcd.url import parse
from tests.support.certs import Authority
from tests.support.etcd import Etcd
from tests.support.tcp_proxy import TcpProxy

START = bytes(8)
ME = Candidate(1, "h1", "http://h1:2380", 17)


@pytest.fixture
def make_etcd(tmp_path):
    made = []

    def make(*flags):
        made.append(Etcd(tmp_path / f"etcd{len(made)}", *flags))
        return made[-1]

    yield make
    for etcd in made:
        etcd.stop()


def chain(seq):
    return b"chain%03d" % seq if seq else START


async def opened(engine):
    return await engine.open(7, 0, START, made_by="h1", made_at_ns=17)


def run(main, *engines):
    async def bounded():
        try:
            async with asyncio.timeout(60):
                await main
        finally:
            for engine in engines:
                await engine.close()

    asyncio.run(bounded())


def url_of(etcd, scheme="etcd"):
    return parse(f"{scheme}://127.0.0.1:{etcd.port}/kvd/a")


def control(etcd, *words):
    if shutil.which("etcdctl") is None:
        pytest.skip("there is no etcdctl here")
    ended = subprocess.run(
        ["etcdctl", "--endpoints", etcd.url, *words],
        env={**os.environ, "ETCDCTL_API": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


async def next_frame(tail):
    async for item in tail:
        if isinstance(item, Frame):
            return item
    return None


async def appended_until_full(engine, lead):
    """Append frames of 1 MiB; the number of the last."""
    for seq in range(1, 100):
        try:
            payload = bytes([seq]) * (1 << 20)
            await engine.append(lead.epoch, seq, chain(seq - 1), chain(seq), payload)
        except EngineFull:
            return seq - 1
    raise AssertionError


def test_users_of_etcd(make_etcd):
    etcd = make_etcd("--bcrypt-cost", "4").start()
    for words in (
        ("role", "add", "kvd"),
        ("role", "grant-permission", "kvd", "readwrite", "/kvd/a/", "--prefix"),
        *(("user", "add", f"{name}:{name}pass") for name in ("root", "kvd")),
        ("user", "grant-role", "kvd", "kvd"),
        ("user", "grant-role", "root", "root"),
        ("auth", "enable"),
    ):
        control(etcd, *words)
    anonymous = EtcdLog(url_of(etcd))
    wrong = EtcdLog(url_of(etcd), Access("kvd", "wrong"))
    right = EtcdLog(url_of(etcd), Access("kvd", "kvdpass"))
    other = parse(f"etcd://127.0.0.1:{etcd.port}/kvd/other")
    elsewhere = EtcdLog(other, Access("kvd", "kvdpass"))

    async def main():
        with pytest.raises(EngineRefused, match="wants a user and a password"):
            await opened(anonymous)
        with pytest.raises(EngineRefused, match="refuses the user"):
            await opened(wrong)
        with pytest.raises(EngineRefused, match="no right to read and write the prefix"):
            await opened(elsewhere)
        await opened(right)
        lead = await right.campaign(ME)
        await right.append(lead.epoch, 1, START, chain(1), b"one")
        tail = right.tail(0)
        assert (await anext(tail)).lead == lead
        assert (await anext(tail)).payload == b"one"
        # A restart ends all tokens, and breaks the watch.
        etcd.stop()
        etcd.start()
        await right.append(lead.epoch, 2, chain(1), chain(2), b"two")
        assert (await anext(tail)).payload == b"two"
        await right.trim(2)
        assert await right.renew(lead)
        await right.report(1, b"here")
        await right.resign(lead)

    run(main(), anonymous, wrong, right, elsewhere)


def test_a_user_is_no_harm_where_etcd_has_none(make_etcd):
    etcd = make_etcd().start()
    engine = EtcdLog(url_of(etcd), Access("kvd", "kvdpass"))

    async def main():
        await opened(engine)
        assert await engine.campaign(ME) is not None

    run(main(), engine)


def test_tls_with_certificates_on_both_sides(make_etcd, tmp_path):
    authority = Authority(tmp_path / "ca")
    server = authority.sign("server", "127.0.0.1")
    client = authority.sign("client", "127.0.0.1")
    etcd = make_etcd()
    address = f"https://127.0.0.1:{etcd.port}"
    etcd._flags = (
        *("--listen-client-urls", address, "--advertise-client-urls", address),
        *("--cert-file", str(server.cert), "--key-file", str(server.key)),
        *("--trusted-ca-file", str(authority.cert), "--client-cert-auth"),
    )
    etcd.start(wait=False)
    url = url_of(etcd, "etcds")
    engine = EtcdLog(url, Access("", "", str(authority.cert), str(client.cert), str(client.key)))

    async def main():
        await opened(engine)
        lead = await engine.campaign(ME)
        big = bytes(range(256)) * 12_000
        await engine.append(lead.epoch, 1, START, chain(1), big)
        tail = engine.tail(0)
        assert (await anext(tail)).lead == lead
        assert (await anext(tail)).payload == big

    run(main(), engine)


def test_certificates_that_are_not_there_are_named(tmp_path):
    url = parse("etcds://h1/kvd")
    with pytest.raises(EngineRefused, match=r"the certificates of the engine, .*/none\.pem"):
        EtcdLog(url, Access(ca_file=str(tmp_path / "none.pem")))


def test_a_full_etcd_refuses_frames_until_it_has_room(make_etcd):
    etcd = make_etcd("--quota-backend-bytes", str(8 << 20)).start()
    engine = EtcdLog(url_of(etcd), quota_bytes=8 << 20)

    async def main():
        await opened(engine)
        lead = await engine.campaign(ME)
        seq = await appended_until_full(engine, lead)
        room = await engine.room()
        assert room.is_full
        assert room.allocated > room.limit // 2
        with pytest.raises(EngineFull):
            await engine.append(lead.epoch, seq + 1, chain(seq), chain(seq + 1), bytes(3 << 20))
        with pytest.raises(EngineFull):
            await engine.campaign(ME)
        with pytest.raises(EngineFull):
            await engine.report(1, b"x")
        # All that needs no room goes on.
        assert await engine.renew(lead)
        assert await engine.confirm(lead.epoch)
        await engine.trim(seq)
        control(etcd, "defrag")
        control(etcd, "alarm", "disarm")
        await engine.append(lead.epoch, seq + 1, chain(seq), chain(seq + 1), b"after")
        assert not (await engine.room()).is_full

    run(main(), engine)


def test_a_wiped_prefix_is_another_history(make_etcd, monkeypatch):
    monkeypatch.setattr(tail, "LOOK_S", 0.05)
    etcd = make_etcd().start()
    engine = EtcdLog(url_of(etcd))

    async def main():
        await opened(engine)
        lead = await engine.campaign(ME)
        await engine.append(lead.epoch, 1, START, chain(1), b"one")
        tail = engine.tail(1)
        assert (await anext(tail)).lead == lead
        control(etcd, "del", "/kvd/a/", "--prefix")
        with pytest.raises(OtherHistory):
            await next_frame(tail)
        with pytest.raises(OtherHistory):
            await engine.append(lead.epoch, 2, chain(1), chain(2), b"two")
        with pytest.raises(OtherHistory):
            await engine.end()

    run(main(), engine)


def test_a_prefix_that_is_used_otherwise_is_refused(make_etcd):
    etcd = make_etcd().start()
    engine = EtcdLog(url_of(etcd))

    async def main():
        control(etcd, "put", "/kvd/a/meta", "something")
        control(etcd, "put", "/kvd/a/head", "0123456789abcdef")
        with pytest.raises(EngineRefused, match="the prefix is not of a log"):
            await opened(engine)
        control(etcd, "put", "/kvd/a/meta", '{"format": 2}')
        with pytest.raises(EngineRefused, match="the log has format 2, expected 1"):
            await opened(engine)

    run(main(), engine)


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2"])
def test_versions_that_lose_writes_are_refused(version):
    client = EtcdClient(parse("etcd://h1/kvd"))
    with pytest.raises(EngineRefused, match=f"h1:2379 is etcd {version}: 3.5.0 to 3.5.2 lose"):
        client._check_version(version, "h1:2379")


@pytest.mark.parametrize(
    ("version", "warns"), [("3.4.23", 1), ("3.4.35", 0), ("3.5.3", 0), ("3.6.0-rc.1", 0)]
)
def test_versions_that_may_skip_events_are_named_once(caplog, version, warns):
    client = EtcdClient(parse("etcd://h1/kvd"))
    with caplog.at_level(logging.WARNING):
        client._check_version(version, "h1:2379")
        client._check_version(version, "h2:2379")
    assert caplog.text.count("may skip events of a watch") == warns


def test_a_watch_that_has_gone_silent_is_found_by_a_look(make_etcd, monkeypatch):
    # The watch is at a member whose responses are lost, calls go to another one.
    monkeypatch.setattr(tail, "LOOK_S", 0.05)
    monkeypatch.setattr(grpc, "PING_AFTER_S", 1000)
    etcd = make_etcd().start()
    leader = EtcdLog(url_of(etcd))
    followers = []

    async def main():
        proxy = await TcpProxy(etcd.port).start()
        url = parse(f"etcd://127.0.0.1:{proxy.port},127.0.0.1:{etcd.port}/kvd/a")
        followers.append(EtcdLog(url))
        await opened(leader)
        lead = await leader.campaign(ME)
        tail = followers[0].tail(0)
        assert (await anext(tail)).lead == lead
        waiting = asyncio.create_task(anext(tail))
        await leader.append(lead.epoch, 1, START, chain(1), b"one")
        assert (await waiting).payload == b"one"
        followers[0]._client.leave(0)
        proxy.mute()
        await leader.append(lead.epoch, 2, chain(1), chain(2), b"two")
        assert (await anext(tail)).payload == b"two"
        await tail.aclose()
        await followers[0].close()
        await proxy.stop()

    run(main(), leader)


def test_an_engine_that_does_not_respond_is_reported_once(caplog, make_etcd):
    etcd = make_etcd()
    engine = EtcdLog(url_of(etcd))

    async def main():
        opening = asyncio.create_task(opened(engine))
        while "the consensus engine does not respond" not in caplog.text:
            await asyncio.sleep(0.01)
        etcd.start()
        await opening
        assert caplog.text.count("does not respond") == 1
        assert "the consensus engine responds again" in caplog.text

    with caplog.at_level(logging.INFO):
        run(main(), engine)
