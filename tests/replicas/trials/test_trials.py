"""A short trial of three members of an etcd: its clients and its ledger find nothing wrong."""

import subprocess
import sys

import pytest

from tests.replicas.trials.__main__ import table
from tests.support.etcd import installed
from tests.support.server import ROOT


@pytest.mark.clients
def test_an_etcd_passes():
    installed()
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.replicas.trials", "--servers", "etcd"),
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
