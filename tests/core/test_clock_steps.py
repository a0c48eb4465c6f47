"""Steps of the machine's clock: keys live for the time that passes, what is shown follows."""

import contextlib
import json
from datetime import datetime
from email.utils import parsedate_to_datetime

import pytest

from kvd.ctl.main import main as kvdctl
from kvd.storage.format.applied import Applied, decode_sums
from kvd.storage.format.frame import Position
from kvd.storage.format.node import CorruptIndex
from kvd.storage.format.records import ClockOffset, encode_record
from kvd.storage.store import Store
from kvd.storage.tools.dump import rfc3339
from kvd.v2.commands import Delete, Set
from tests.storage.test_replicas import follow, frames
from tests.support import stepped
from tests.support.committing import on_a_loop, started
from tests.support.log_texts import log_text
from tests.support.server import Server
from tests.support.stores import NOW_NS, SECOND_NS, commit, dump, open_store, sweep, write

HOUR_NS = 3600 * SECOND_NS
DAY_S = 86_400


def log_step(store, offset_ns, now_ns):
    txn = store.begin()
    record = ClockOffset(offset_ns)
    txn.apply(record, now_ns)
    commit(store, txn, [encode_record(record)], now_ns)


def made(path):
    """A store that has seen a step of an hour ahead, and one of two hours back."""
    store = open_store(path)
    write(store, Set(b"/a", b"0", ttl_s=100))
    log_step(store, HOUR_NS, NOW_NS + SECOND_NS)
    write(store, Set(b"/a", b"1", ttl_s=100), now_ns=NOW_NS + 2 * SECOND_NS)
    log_step(store, -HOUR_NS, NOW_NS + 3 * SECOND_NS)
    write(store, Set(b"/a", b"2", ttl_s=100), now_ns=NOW_NS + 4 * SECOND_NS)
    return store


def test_a_step_is_logged_and_outlives_starts_snapshots_and_rebuilding(tmp_path):
    store = made(tmp_path / "data")
    assert store.applied.clock_offset_ns == -HOUR_NS
    assert store.applied.time_ns == NOW_NS + 4 * SECOND_NS
    held = dump(store)
    store.flush()
    store.snapshot()
    store.close()
    for rebuild in (False, True):
        store = open_store(tmp_path / "data", rebuild_index=rebuild)
        assert dump(store) == held
        store.close()
    store = open_store(tmp_path / "data")
    sweep(store, NOW_NS + 103 * SECOND_NS)
    assert store.view.find(b"/a") is not None
    sweep(store, NOW_NS + 104 * SECOND_NS)
    assert store.view.find(b"/a") is None
    store.close()


def test_a_replica_has_the_same_offset(tmp_path):
    leader = made(tmp_path / "leader")
    follower = open_store(tmp_path / "follower")
    for payload in frames(leader):
        follow(follower, payload)
    assert dump(follower) == dump(leader)
    leader.close()
    follower.close()


def test_a_store_without_a_step_is_written_as_ever():
    position = Position(10, 11, 12, 13)
    applied = Applied(1, b"12345678", 3, 4, 5, 6, 7, 8, 9, position)
    for offset_ns in (0, HOUR_NS, -HOUR_NS):
        moved = applied._replace(clock_offset_ns=offset_ns)
        assert Applied.decode(moved.encode()) == moved
        assert len(moved.encode()) - len(applied.encode()) == (8 if offset_ns else 0)
        row = moved.encode_with((1, 2, 3, 1 << 100))
        assert Applied.decode(row) == moved
        assert decode_sums(row) == (1, 2, 3, 1 << 100)
        assert len(row) - len(applied.encode_with((0, 0, 0, 0))) == (8 if offset_ns else 0)
    with pytest.raises(CorruptIndex):
        Applied.decode(applied._replace(clock_offset_ns=1).encode()[:-1])


def test_tools_print_times_of_the_wall_clock(tmp_path, capsys):
    made(tmp_path / "data").close()
    assert kvdctl(["dump", str(tmp_path / "data")]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines] == ["set", "clock", "set", "clock", "set"]
    wall_ns = [0, HOUR_NS + SECOND_NS, HOUR_NS + 2 * SECOND_NS, 3 * SECOND_NS - HOUR_NS]
    assert [line["time_ns"] - NOW_NS for line in lines[:4]] == wall_ns
    assert lines[2]["expiration_ns"] == NOW_NS + HOUR_NS + 102 * SECOND_NS
    target = tmp_path / "then"
    time = rfc3339(NOW_NS + HOUR_NS + SECOND_NS)
    assert kvdctl(["restore", "--to-time", time, str(tmp_path / "data"), str(target)]) == 0
    assert f"index 2, last written {time}" in capsys.readouterr().out
    store = Store.open(target)
    assert store.view.find(b"/a").value == b"0"
    assert store.applied.clock_offset_ns == HOUR_NS
    store.close()
    copy = tmp_path / "copy"
    assert kvdctl(["backup", str(tmp_path / "data"), str(copy)]) == 0
    assert kvdctl(["verify", str(tmp_path / "data")]) == 0


@on_a_loop
async def test_the_committer_logs_a_step_once_and_no_time_of_it(tmp_path, caplog):
    async with started(tmp_path / "data") as engine:
        await engine.run(Set(b"/a", b"", ttl_s=100))
        pos = engine.store.applied.pos
        engine.committer.look_at_clock()
        await engine.run(Set(b"/b", b""))
        assert engine.store.applied.pos == pos + 1
        for offset_ns in (HOUR_NS, -HOUR_NS):
            engine.clock.offset_ns = offset_ns
            for _ in range(3):
                engine.committer.look_at_clock()
                await engine.committer.drain()
            assert engine.store.applied.clock_offset_ns == offset_ns
        assert engine.store.applied.pos == pos + 3
        engine.clock.time_ns += 99 * SECOND_NS
        (deleted,) = await engine.run(Delete(b"/a"))
        assert deleted.prev.expiration_ns == NOW_NS + 100 * SECOND_NS
    assert [record.args[0] for record in caplog.records if "stepped" in record.msg] == [3600, -7200]


@pytest.fixture
def make_stepped(tmp_path):
    """Make servers whose clock can be stepped, and the file by which."""
    file = tmp_path / "clock"
    stepped.step(file, 0)
    with contextlib.ExitStack() as stack:

        def make():
            environment = {"CLOCK_FILE": str(file)}
            launch = ("-m", "tests.support.stepped")
            server = Server(tmp_path / "data", launch=launch, environment=environment)
            stack.callback(server.stop)
            return server, file

        yield make


def ahead_s(answer, wrong_s):
    """How far the expiration in an answer is ahead of the machine's clock."""
    now = parsedate_to_datetime(answer.headers["date"])
    then = datetime.fromisoformat(answer.json["node"]["expiration"][:19] + "+00:00")
    return (then - now).total_seconds() - wrong_s


@pytest.mark.parametrize(("end", "steps_s"), [("terminate", [-3]), ("kill", [DAY_S, -2 * DAY_S])])
def test_keys_outlive_steps_and_restarts_and_are_shown_by_the_new_time(make_stepped, end, steps_s):
    server, file = make_stepped()
    client = server.start().client()
    client.put("/before", "1", ttl=3600)
    client.put("/short", "1", ttl=100)
    for wrong_s in steps_s:
        stepped.step(file, wrong_s * SECOND_NS)
        server.wait_for_log(log_text("the system's clock was stepped"))
        server.stderr = ""
        client.put(f"/{wrong_s}", "1", ttl=3600)
        for key in ("/before", f"/{wrong_s}"):
            assert abs(ahead_s(client.get(key), wrong_s) - 3600) < 60
        listed = client.get("/", recursive="true").json["node"]["nodes"]
        shown = [datetime.fromisoformat(node["expiration"][:19]) for node in listed]
        assert (max(shown) - min(shown)).total_seconds() < 2 * 3600
        getattr(server, end)()
        server.wait()
        client = server.start().client()
        for key in ("/before", f"/{wrong_s}", "/short"):
            answer = client.get(key)
            assert answer.status == 200
            assert 40 < answer.json["node"]["ttl"] <= 3600
        assert abs(ahead_s(client.get("/before"), wrong_s) - 3600) < 60
        assert 40 < client.get("/short").json["node"]["ttl"] <= 100


def test_a_step_right_before_a_stop_is_logged(make_stepped):
    server, file = make_stepped()
    client = server.start().client()
    client.put("/a", "1", ttl=100)
    stepped.step(file, DAY_S * SECOND_NS)
    assert server.terminate() == 0
    answer = server.start().client().get("/a")
    assert 40 < answer.json["node"]["ttl"] <= 100
    assert abs(ahead_s(answer, DAY_S) - 100) < 60
