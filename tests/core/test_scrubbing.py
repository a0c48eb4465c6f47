"""The background scrub of the log: damage is reported and put behind a snapshot."""

import asyncio
import errno
import logging
import os
import re

import pytest

from kvd.storage.errors import CorruptLog
from tests.support.house import kept
from tests.support.log_texts import log_text
from tests.support.stores import digest, open_store
from tests.support.waiting import until


def rot(path):
    """Damage the log of a stopped store, far before its end."""
    segment = sorted((path / "wal").glob("*.wal"))[0]
    data = bytearray(segment.read_bytes())
    data[4096 + 100] ^= 1
    segment.write_bytes(data)


def test_damage_in_the_unread_log_is_reported_and_put_behind_a_snapshot_at_once(tmp_path, caplog):
    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.commit(200)
            held = digest(house.store)
        rot(tmp_path / "data")
        with pytest.raises(CorruptLog):
            open_store(tmp_path / "data", rebuild_index=True)
        caplog.clear()
        async with kept(tmp_path / "data", None) as house:
            house.housekeeping.tick()
            await until(lambda: house.housekeeping.damage)
            await until(lambda: not house.housekeeping.damage)
            assert len(house.taken()) == 1
        return held

    held = asyncio.run(scenario())
    received, settled = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert received.levelname == "ERROR"
    path = re.escape(str(tmp_path / "data"))
    assert re.fullmatch(
        r"wal/\S+: offset 4096: frame 1 fails its checksum \(\w+, expected \w+\).* damaged behind "
        rf"index 1; .* kvdctl verify --force {path}",
        received.message,
    )
    assert "the damaged part of the log is no longer needed" in settled.message
    store = open_store(tmp_path / "data", rebuild_index=True)
    assert digest(store) == held
    store.close()


def test_as_long_as_that_snapshot_cannot_be_made_the_damage_stands(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.housekeeping._BACK_OFF_S", 0.01)

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.commit(200)
        rot(tmp_path / "data")
        async with kept(tmp_path / "data", None) as house:
            take = house.store.snapshot

            def refuse():
                house.begun += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            house.store.snapshot = refuse
            await until(lambda: house.housekeeping.tick() or house.begun >= 3)
            assert house.housekeeping.damage
            house.store.snapshot = take
            await until(lambda: house.housekeeping.tick() or not house.housekeeping.damage)
            assert house.housekeeping.snapshots_failed >= 3

    asyncio.run(scenario())


def test_a_good_log_is_read_to_its_end_beside_everything_else(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("kvd.core.background.housekeeping._CHECK_S", 0)
    monkeypatch.setattr("kvd.core.background.housekeeping._CHECK_PAUSE_S", 0)
    caplog.set_level(logging.INFO)

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.commit(300)
        async with kept(tmp_path / "data", 50) as house:
            house.housekeeping.tick()
            await until(lambda: house.commit(10) or house.taken())
            await until(lambda: log_text("the log behind the index is good") in caplog.text)

    asyncio.run(scenario())


def test_a_stop_does_not_wait_for_the_kept_log(tmp_path, monkeypatch):
    monkeypatch.setattr("kvd.core.background.housekeeping._CHECK_S", 0)

    async def scenario():
        async with kept(tmp_path / "data", None) as house:
            house.commit(300)
        async with kept(tmp_path / "data", None) as house:
            log_scrubber = house.housekeeping._log_scrubber
            house.housekeeping.tick()
            await until(lambda: log_scrubber.frames)
        assert log_scrubber.frames < 25

    asyncio.run(scenario())
