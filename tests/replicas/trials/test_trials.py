"""Short trials: neither three members of an etcd nor three kvd do anything wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.replicas.trials.__main__ import table
from tests.replicas.trials.network import Place
from tests.replicas.trials.processes import Process
from tests.support.etcd import installed
from tests.support.server import ROOT
from tests.support.waiting import wait_until


@pytest.mark.clients
@pytest.mark.parametrize("servers", ["etcd", "kvd"])
def test_a_store_of_three_servers_survives_its_leader(servers):
    installed()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.replicas.trials", "--servers", servers),
            *("--faults", "3", "--seed", "1", "--only", "leader killed", "follower frozen"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "lost 0, twice 0, refused and done 0, unexplained 0, stale 0" in ended.stdout


def test_the_table_has_median_and_worst():
    shown = table({"leader killed": [0.5, 0.1, 0.3], "follower killed": [0.01]})
    lines = [line.split() for line in shown.splitlines()]
    assert lines[1] == ["leader", "killed", "3", "0.30", "0.50"]
    assert lines[2] == ["follower", "killed", "1", "0.01", "0.01"]


def process(tmp_path: Path, command: str) -> Process:
    return Process("one", Place("127.0.0.1"), tmp_path / "one", ["sh", "-c", command])


def test_a_process_that_ends_on_its_own_account_is_noted(tmp_path):
    one = process(tmp_path, "echo why >&2; exit 3")
    one.start()
    wait_until(one.has_ended)
    one.look()
    one.look()
    assert one.failures == ["one has ended, status 3: ['why']"]


def test_a_process_that_a_fault_ends_is_not(tmp_path):
    one = process(tmp_path, "exec sleep 60")
    for end in (one.kill, one.terminate):
        one.start()
        end()
        wait_until(one.has_ended)
    one.start()
    one.kill()
    assert (one.failures, one.starts) == ([], 3)


def test_a_frozen_process_ends_too(tmp_path):
    one = process(tmp_path, "exec sleep 60")
    one.start()
    one.freeze()
    one.kill()
    assert one.has_ended()
