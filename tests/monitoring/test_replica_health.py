"""Health and metrics of a replica: what its standing adds to those of a server alone."""

import asyncio
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from kvd.core.histogram import Histogram
from kvd.core.standing import Alone, EngineFigures, Leader, Role, Traffic
from kvd.monitoring.health import Health
from kvd.monitoring.replica_metrics import ReplicaCollector
from kvd.monitoring.ui_status import shown_replica
from kvd.v2.documents.members import Member
from tests.support.documents import entries, once


def engine(**figures):
    usual = {"append_wait_s": 0.0, "silent_s": 0.5, "used_bytes": 18, "quota_bytes": 2048}
    return EngineFigures(Histogram(), **usual | figures)


class Replica(Alone):
    """A standing as it is set."""

    def __init__(self, **shown):
        super().__init__(1, 0)
        self.engine = engine()
        self.role = Role.FOLLOWING
        self.is_there = True
        self.__dict__.update(shown)

    async def is_reachable(self):
        return self.is_there


def health(standing=None, *, syncing_s=0.0):
    found = Health()
    committer = SimpleNamespace(
        syncing_s=syncing_s, no_room="", flusher=SimpleNamespace(waits=False)
    )
    found.set_serving(committer, SimpleNamespace(damage=""))
    if standing is not None:
        found.set_standing(standing)
    return found


def failed(found):
    return {name: problem for name, problem in found.checks() if problem}


def test_a_replica_has_checks_of_its_own():
    names = [name for name, _ in health(Replica()).checks()]
    alone = [name for name, _ in health().checks()]
    assert names == [*alone, "engine", "behind", "detached"]
    assert failed(health(Replica())) == {}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"engine": engine(silent_s=5.1)}, {"engine": "no answer for 5 s"}),
        ({"engine": engine(silent_s=4.9)}, {}),
        (
            {"behind_frames": 12, "behind_s": 7.0},
            {"behind": "12 frames are not applied, for 7 s"},
        ),
        ({"behind_frames": 12, "behind_s": 4.0}, {}),
        ({"problem": "the engine's log is gone"}, {"detached": "the engine's log is gone"}),
        (
            {"role": Role.JOINING},
            {"startup": "the replica fetches what it lacks of the log"},
        ),
        (
            {"engine": engine(refusal="etcdserver: no space")},
            {"space": "etcdserver: no space"},
        ),
    ],
    ids=["silent", "answers", "behind", "near", "detached", "joining", "full"],
)
def test_a_replica_is_not_ready_while_a_check_fails(shown, expected):
    assert failed(health(Replica(**shown))) == expected


def test_the_time_of_the_engine_is_not_the_disk_s():
    waiting = Replica(engine=engine(append_wait_s=58.0))
    assert "log" not in failed(health(waiting, syncing_s=60.0))
    assert failed(health(waiting, syncing_s=64.0)) == {"log": "a sync has been taking 6 s"}


@pytest.mark.parametrize(
    ("shown", "healthy"),
    [
        ({}, True),
        ({"_leader": None}, False),
        ({"is_there": False}, False),
        # The look at the engine decides, and a follower that lags takes writes.
        ({"engine": engine(silent_s=60.0), "behind_s": 60.0}, True),
        ({"problem": "another history"}, False),
    ],
    ids=["leader", "none", "silent", "only late", "detached"],
)
def test_health_is_a_leader_and_an_engine_that_answers(shown, healthy):
    found = health(Replica(**shown))
    assert asyncio.run(found.is_healthy()) is healthy
    assert (found.successes, found.failures) == (int(healthy), int(not healthy))


def test_the_page_shows_a_replica_and_its_leader():
    members = [Member("h1", 1, (), ()), Member("h2", 2, (), ())]
    assert shown_replica(Alone(1, 0), members) == {}
    following = Replica(_leader=Leader(2, 0), behind_frames=3)
    assert shown_replica(following, members) == {
        "replica": {"state": "following", "leader": "h2", "behind": 3}
    }
    assert shown_replica(Replica(_leader=None), members)["replica"]["leader"] == ""


def metrics(standing):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReplicaCollector(standing))
    return generate_latest(registry).decode()


def test_the_metrics_of_a_replica_have_its_figures():
    appends = engine(silent_s=2.0)
    appends.append_s.observe(0.002, times=3)
    lines = metrics(
        Replica(engine=appends, behind_frames=4, behind_s=1.5, received=Traffic(17))
    ).splitlines()
    for line in (
        'kvd_replica_state{state="following"} 1.0',
        'kvd_replica_state{state="leading"} 0.0',
        "kvd_replica_behind_frames 4.0",
        "kvd_replica_behind_seconds 1.5",
        "kvd_replica_received_frames_total 17.0",
        "kvd_engine_append_seconds_count 3.0",
        "kvd_engine_silent_seconds 2.0",
        "kvd_engine_bytes 18.0",
        "kvd_engine_quota_bytes 2048.0",
    ):
        assert line in lines


def test_each_metric_and_check_of_a_replica_has_one_entry():
    shown = {
        line.split()[2] for line in metrics(Replica()).splitlines() if line.startswith("# TYPE")
    }
    assert entries(r"(kvd_(?:replica|engine)_\w+)$") == once(shown)
    checks = {"engine", "behind", "detached"}
    assert {name: entries(f"({name})$")[name] for name in checks} == dict.fromkeys(checks, 1)
