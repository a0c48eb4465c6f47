"""A trial of three kvd whose log is in a PostgreSQL: faults under load, and the ledger."""

import asyncio
import signal
import sys

import pytest

from tests.replicas.trials import faults
from tests.replicas.trials.faults import Fault
from tests.replicas.trials.fleet import Fleet
from tests.replicas.trials.ledger import counted
from tests.replicas.trials.network import Place
from tests.replicas.trials.processes import CLIENT_PORT, PEER_PORT, Process
from tests.replicas.trials.trial import Trial
from tests.support.postgres import DATABASE, USER, Postgres

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(600),
    # Clients of the trial leave connections behind that faults have cut.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class PostgresFleet(Fleet):
    """Three kvd, and the server that has their log."""

    def __init__(self, root, server):
        self.is_etcd = self.can_cut = False
        self.server = server
        self.outside = Place("127.0.0.1")
        self.engines = []
        self.servers = [self._kvd(number, root) for number in (1, 2, 3)]

    def _kvd(self, number, root):
        place = Place(f"127.0.80.{number}")
        client = f"http://{place.address}:{CLIENT_PORT}"
        flags = [
            *(sys.executable, "-m", "kvd", "--name", f"kvd{number}"),
            *("--replicate", f"postgres://127.0.0.1:{self.server.port}/{DATABASE}"),
            *("--replicate-user", USER, "--event-history-limit", "1000000"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", f"http://{place.address}:{PEER_PORT}"),
        ]
        return Process(f"kvd{number}", place, root / f"kvd{number}", flags)


async def kill_server(fleet, dice):
    await asyncio.to_thread(fleet.server.stop, signal.SIGKILL)
    await asyncio.sleep(dice.uniform(0, 2))
    await asyncio.to_thread(fleet.server.start)


async def freeze_server(fleet, dice):
    fleet.server.send(signal.SIGSTOP)
    await asyncio.sleep(dice.uniform(1, 5))
    fleet.server.send(signal.SIGCONT)


async def end_backends(fleet, dice):
    statement = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
    )
    for _ in range(10):
        place = ("--host", "127.0.0.1", "--port", str(fleet.server.port), "--username", USER)
        await asyncio.to_thread(
            fleet.server.program, "psql", *place, "--command", statement, DATABASE
        )
        await asyncio.sleep(dice.uniform(0, 0.3))


FAULTS = (
    Fault("leader killed", faults.kill_leader),
    Fault("server killed", kill_server),
    Fault("connections ended", end_backends),
    Fault("leader frozen", faults.freeze_leader),
    Fault("server frozen", freeze_server),
    Fault("leader stopped", faults.stop_leader),
    Fault("all killed", faults.kill_all),
    Fault("follower killed", faults.kill_follower),
)


@pytest.mark.parametrize("seed", [1, 2])
def test_three_kvd_pass(tmp_path, seed):
    server = Postgres()
    fleet = PostgresFleet(tmp_path, server)
    try:
        server.make().start()
        trial = Trial(fleet, seed=seed, clients=6, pause_s=0.05)
        outcome = asyncio.run(trial.run(FAULTS, print))
    finally:
        fleet.stop()
        server.remove()
    assert not outcome.problems, counted(outcome.problems)
    assert outcome.acknowledged > 100
