"""The log in a PostgreSQL whose administrator does something."""

import asyncio

import pytest

from kvd.replicas.engine import (
    Access,
    EngineFull,
    EngineRefused,
    OtherHistory,
)
from kvd.replicas.postgres.log import PostgresLog
from kvd.replicas.postgres.url import parse
from tests.support.postgres_log import ME, append, chain, next_frame, on, opened


def test_frames_that_a_fail_over_has_lost_are_another_history(shared_postgres):
    async def main(place):
        engine, lead = await place.leading()
        await append(engine, lead, 1, 2, 3)
        items = place.engine().tail(2)
        assert (await anext(items)).lead == lead
        assert (await anext(items)).seq == 3
        await place.admin.execute("DELETE FROM log WHERE seq > 1")
        with pytest.raises(OtherHistory, match="ends with frame 1, before frame 3"):
            await place.notified(items)
        with pytest.raises(OtherHistory, match="the log ends with frame 1"):
            await append(engine, lead, 4)
        # The next leader goes on otherwise.
        items = place.engine().tail(1)
        assert (await anext(items)).lead == lead
        await append(engine, lead, 2)
        assert (await anext(items)).seq == 2
        await place.admin.execute("UPDATE log SET chain = 'another.' WHERE seq = 2")
        await engine.append(lead.epoch, 3, b"another.", chain(3), b"frame 3")
        with pytest.raises(OtherHistory, match="frame 2 of the engine's log has chain"):
            await next_frame(items)

    on(shared_postgres, main)


@pytest.mark.parametrize(
    "statement",
    ["DROP SCHEMA {} CASCADE", "DROP TABLE log", "TRUNCATE head", "TRUNCATE log, head, meta"],
)
def test_a_wiped_schema_is_another_history(shared_postgres, statement):
    async def main(place):
        engine, lead = await place.leading()
        await append(engine, lead, 1)
        items = place.engine().tail(1)
        assert (await anext(items)).lead == lead
        await place.admin.execute(statement.format(place.schema))
        for attempt in (
            place.notified(items),
            append(engine, lead, 2),
            engine.end(),
            engine.confirm(lead.epoch),
        ):
            with pytest.raises(OtherHistory):
                await attempt

    on(shared_postgres, main)


def test_a_log_that_has_lost_a_table_is_not_opened(shared_postgres):
    async def main(place):
        await place.leading()
        await place.admin.execute("TRUNCATE log")
        with pytest.raises(OtherHistory, match="incomplete"):
            await opened(place.engine())

    on(shared_postgres, main)


def test_a_schema_that_is_used_otherwise_is_refused(shared_postgres):
    async def main(place):
        await opened(place.engine())
        await place.admin.execute("UPDATE meta SET format = 2")
        with pytest.raises(EngineRefused, match="the log has format 2, expected 1"):
            await opened(place.engine())
        await place.admin.execute("DROP TABLE meta; CREATE TABLE meta (theirs int)")
        with pytest.raises(EngineRefused, match=f"the schema {place.schema} is not of a log"):
            await opened(place.engine())

    on(shared_postgres, main)


def test_rights_and_settings_are_named(shared_postgres):
    async def main(place):
        role = place.schema
        await place.admin.execute(f"CREATE ROLE {role} LOGIN")
        with pytest.raises(EngineRefused, match=r"may not use the log: .*permission denied"):
            await opened(place.engine(Access(role)))
        # A schema of one's own is enough, and rights on the tables of another's.
        await place.admin.execute(f"CREATE SCHEMA {role} AUTHORIZATION {role}")
        own = place.engine(Access(role))
        await opened(own)
        lead = await own.campaign(ME)
        await append(own, lead, 1)
        await own.trim(1)
        await own.room()
        await place.admin.execute(f"ALTER ROLE {role} SET synchronous_commit = off")
        with pytest.raises(EngineRefused, match="synchronous_commit = off"):
            await opened(place.engine(Access(role)))
        await place.admin.execute(f"ALTER ROLE {role} SET synchronous_commit = remote_apply")
        await opened(place.engine(Access(role)))
        with pytest.raises(EngineRefused, match='role "missing_role" does not exist'):
            await opened(place.engine(Access("missing_role")))
        elsewhere = parse(f"postgres://127.0.0.1:{place.server.port}/elsewhere")
        with pytest.raises(EngineRefused, match='database "elsewhere" does not exist'):
            await opened(PostgresLog(elsewhere, Access(role)))

    on(shared_postgres, main)


def test_a_server_that_takes_no_writes_is_waited_for(shared_postgres, caplog):
    async def main(place):
        role = place.schema
        await place.admin.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
        await place.admin.execute(f"ALTER ROLE {role} SET default_transaction_read_only = on")
        opening = asyncio.create_task(opened(place.engine(Access(role))))
        while "takes no writes: it is a standby, or set to read only" not in caplog.text:
            await asyncio.sleep(0.005)
        await place.admin.execute(f"ALTER ROLE {role} RESET default_transaction_read_only")
        await opening

    on(shared_postgres, main)


def test_a_full_disk_refuses_frames_until_it_has_room(shared_postgres):
    async def main(place):
        engine, lead = await place.leading(limit_bytes=1 << 30)
        await append(engine, lead, 1)
        await place.admin.execute(
            """CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'could not extend file' USING ERRCODE = '53100'; END $$;
            CREATE TRIGGER full_disk BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION full_disk();
            CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON replica
            FOR EACH ROW EXECUTE FUNCTION full_disk()"""
        )
        with pytest.raises(EngineFull):
            await append(engine, lead, 2)
        with pytest.raises(EngineFull):
            await engine.report(1, b"x")
        room = await engine.room()
        assert room.is_full
        assert room.limit == 1 << 30
        assert await engine.confirm(lead.epoch)
        assert (await engine.room()).is_full
        # Whatever is written shows that there is room again.
        assert await engine.renew(lead)
        assert not (await engine.room()).is_full
        await place.admin.execute("DROP TRIGGER full_disk ON log")
        await append(engine, lead, 2)

    on(shared_postgres, main)


def test_certificates_that_are_not_there_are_named(tmp_path):
    with pytest.raises(EngineRefused, match=r"the certificates of the engine, .*/none\.pem"):
        PostgresLog(parse("postgres://h1/kvd"), Access(ca_file=str(tmp_path / "none.pem")))
