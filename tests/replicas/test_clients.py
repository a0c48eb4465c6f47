"""Clients of etcd that know three servers, while the one that leads is killed again and again."""

import os
import shutil
import subprocess

import pytest

from bench.replicas import clusters
from tests.support.etcd import installed

KILLS = 3
WRITES = 20

etcd = pytest.importorskip("etcd")


@pytest.mark.clients
@pytest.mark.filterwarnings("ignore")  # of python-etcd
def test_clients_go_on_at_another_server(tmp_path):
    installed()
    with clusters.kvd(tmp_path) as cluster:
        addresses = [server.address for server in cluster.servers]
        client = etcd.Client(host=tuple(addresses), allow_reconnect=True, read_timeout=10)
        endpoints = ",".join(f"http://{host}:{port}" for host, port in addresses)
        for kill in range(KILLS):
            leader = cluster.leader()
            leader.kill()
            for number in range(WRITES):
                client.write(f"/python/{kill}-{number}", "x")
            if shutil.which("etcdctl"):
                command = ["etcdctl", "--endpoints", endpoints, "set", f"/ctl/{kill}", "x"]
                environment = os.environ | {"ETCDCTL_API": "2"}
                subprocess.run(command, env=environment, check=True, capture_output=True)
            leader.start()
        assert len(list(client.read("/python").children)) == KILLS * WRITES
