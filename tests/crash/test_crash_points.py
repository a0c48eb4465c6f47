"""Crashes at each failpoint of a write, a start and a snapshot: what was acknowledged survives."""

import signal
from typing import Any

import pytest

from kvd.storage import failpoints
from tests.support.faults import KILLED, SMALL, Script, faulty, start_or_die
from tests.support.server import Server

FORKED = True
"""Each test starts some servers: see conftest.py."""


def leave_a_torn_tail(server: Server) -> None:
    """Append to the log of a killed server what a write that never finished leaves."""
    path = max((server.data_dir / "wal").glob("*.wal"))
    data = path.read_bytes()
    end = -(-len(data.rstrip(b"\0")) // 8) * 8 + 8
    with path.open("r+b") as file:
        file.seek(end)
        file.write(b"KVDF torn")


def survives_a_crash(make_server: Any, fault: str, *, seed: int = 1) -> None:
    server = make_server(*SMALL)
    script = Script(seed)
    server.start()
    client = server.client()
    for _ in range(20):
        script.write(client)
    server.kill()
    if fault.startswith("tail"):
        leave_a_torn_tail(server)
    if start_or_die(server, *faulty(fault)):
        if fault.startswith(("stop", "indexBeforeSync")):
            script.check(server)
            client = server.client()
            for _ in range(20):
                script.write(client)
            server.signal(signal.SIGTERM)
        else:
            script.write_until_dead(server)
    assert server.wait() == KILLED, f"{fault} did not happen:\n{server.stderr}"
    server.start()
    script.check(server)
    client = server.client()
    for _ in range(20):
        script.write(client)
    server.kill()
    server.start("--rebuild-index")
    script.check(server)
    assert server.terminate() == 0


@pytest.mark.parametrize("name", failpoints.NAMES)
def test_what_was_acknowledged_survives_a_crash_at(make_server, name):
    survives_a_crash(make_server, f"{name}=crash")


@pytest.mark.durability_full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("nth", [2, 3, 5, 8, 13, 40])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in failpoints.NAMES
        if name.startswith(("wal", "segment", "index", "snapshot", "purge"))
        and name != "indexBeforeSync"  # so small a store has that only at its stop
    ],
)
def test_so_it_does_a_crash_the_nth_time_at(make_server, name, nth):
    if nth > 8 and name.startswith(("segment", "snapshot", "purge")):
        nth = 6
    survives_a_crash(make_server, f"{name}=crash@{nth}", seed=nth)


@pytest.mark.parametrize("length", [1, 40, 100, 500])
def test_a_torn_frame_is_cut(make_server, length):
    survives_a_crash(make_server, f"walBeforeWrite=tear:{length}@{length % 7 + 3}")


@pytest.mark.durability_full
@pytest.mark.parametrize("length", [*range(0, 130, 7), 1000, 4000])
@pytest.mark.parametrize("nth", [4, 11])
def test_a_torn_frame_is_cut_wherever_it_ends(make_server, length, nth):
    survives_a_crash(make_server, f"walBeforeWrite=tear:{length}@{nth}", seed=length)


@pytest.mark.parametrize("length", [0, 1, 2000])
def test_a_torn_segment_header_is_no_part_of_the_log(make_server, length):
    survives_a_crash(make_server, f"segmentBeforeHeader=tear:{length}")
