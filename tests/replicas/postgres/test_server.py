"""The log in a PostgreSQL that is killed, frozen, set up otherwise, and reached by TLS."""

import asyncio
import re
import signal

import pytest

from kvd.replicas.engine import Access, EngineRefused
from kvd.replicas.postgres import client, session
from kvd.replicas.postgres.log import PostgresLog
from kvd.replicas.postgres.url import parse
from tests.support.certs import Authority
from tests.support.documents import MANUAL
from tests.support.postgres import DATABASE, USER, Postgres
from tests.support.postgres_log import ME, append, chain, next_frame, on, opened
from tests.support.server import free_port

HBA = """
hostnossl all guarded 127.0.0.1/32 reject
hostssl all guarded 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority):
    postgres = Postgres()
    try:
        pair = authority.sign("server", "127.0.0.1")
        postgres.settings += (
            "ssl = on",
            f"ssl_cert_file = '{postgres.own(pair.cert, 'server.crt')}'",
            f"ssl_key_file = '{postgres.own(pair.key, 'server.key')}'",
        )
        postgres.make()
        (postgres.directory / "pg_hba.conf").write_text(HBA)
        yield postgres.start()
    finally:
        postgres.remove()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_a_server_that_ends_and_comes_back(server, number):
    async def main(place):
        engine, lead = await place.leading()
        items = place.engine().tail(0)
        assert (await anext(items)).lead == lead
        seen = []
        for seq in range(1, 31):
            appending = asyncio.create_task(append(engine, lead, seq))
            if seq % 10 == 5:
                await asyncio.sleep(0)
                await asyncio.to_thread(server.stop, number)
                await asyncio.to_thread(server.start)
            await appending
            frame = await next_frame(items)
            seen.append((frame.seq, frame.payload))
        assert seen == [(seq, b"frame %d" % seq) for seq in range(1, 31)]
        assert await engine.renew(lead)
        assert (await engine.end()).chain == chain(30)

    on(server, main)


def test_a_frozen_server_is_left_and_found_again(server, monkeypatch, caplog):
    monkeypatch.setattr(client, "CALL_S", 0.05)
    monkeypatch.setattr(session, "CONNECT_S", 0.1)

    async def main(place):
        engine, lead = await place.leading()
        await append(engine, lead, 1)
        items = place.engine().tail(1)
        assert (await anext(items)).lead == lead
        server.send(signal.SIGSTOP)
        try:
            appending = asyncio.create_task(append(engine, lead, 2))
            while "the consensus engine does not respond" not in caplog.text:
                await asyncio.sleep(0.005)
            assert not appending.done()
        finally:
            server.send(signal.SIGCONT)
        monkeypatch.undo()
        await appending
        assert (await next_frame(items)).seq == 2
        await append(engine, lead, 3)
        assert (await next_frame(items)).seq == 3

    on(server, main)


def test_the_manual_s_statements_make_a_user_and_a_database(server):
    page = (MANUAL / "replicas.md").read_text()
    statements = re.findall(r"^    (CREATE .*;)$", page, re.MULTILINE)
    assert len(statements) == 2

    async def main(place):
        for statement in statements:
            await place.admin.execute(statement)
        engine = PostgresLog(parse(f"postgres://127.0.0.1:{server.port}/config"), Access("kvd"))
        await opened(engine)
        assert await engine.campaign(ME) is not None
        await engine.close()

    on(server, main)


def test_the_next_host_is_taken_where_one_does_not_respond(server):
    async def main(place):
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{server.port}"
        engine = PostgresLog(parse(f"postgres://{hosts}/{DATABASE}"), Access(USER))
        await opened(engine)
        await engine.close()

    on(server, main)


def test_a_server_that_does_not_sync_is_refused(server):
    async def main(place):
        await place.admin.execute("ALTER SYSTEM SET fsync = off")
        await place.admin.execute("SELECT pg_reload_conf()")
        try:
            # The server reads it soon.
            while await (await place.connect()).fetchval("SHOW fsync") != "off":
                await asyncio.sleep(0.005)
            with pytest.raises(EngineRefused, match="fsync = off: a power cut"):
                await opened(place.engine())
        finally:
            await place.admin.execute("ALTER SYSTEM RESET fsync")
            await place.admin.execute("SELECT pg_reload_conf()")

    on(server, main)


def test_tls_and_a_password(server, authority, tmp_path, caplog):
    stranger = Authority(tmp_path, "stranger")

    def engine(mode="", password="secret", ca=authority, host="127.0.0.1"):
        url = parse(f"postgres://{host}:{server.port}/{DATABASE}?schema=guarded{mode}")
        return PostgresLog(url, Access("guarded", password, str(ca.cert) if ca else ""))

    async def main(place):
        await place.admin.execute(
            "CREATE ROLE guarded LOGIN PASSWORD 'secret';"
            "CREATE SCHEMA guarded AUTHORIZATION guarded"
        )
        for right in (
            engine(),
            engine("&sslmode=verify-ca", host="localhost"),
            engine("&sslmode=require", ca=None),
            engine(ca=None),
        ):
            await opened(right)
            await right.close()
        with pytest.raises(EngineRefused, match="password authentication failed"):
            await opened(engine(password="wrong"))
        with pytest.raises(EngineRefused, match="pg_hba"):
            await opened(engine("&sslmode=disable", ca=None))
        for wrong in (engine(ca=stranger), engine(host="localhost")):
            opening = asyncio.create_task(opened(wrong))
            while "certificate verify failed" not in caplog.text:
                await asyncio.sleep(0.005)
            caplog.clear()
            opening.cancel()
            await asyncio.wait([opening])
            await wrong.close()

    on(server, main)
