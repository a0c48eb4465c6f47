"""A Patroni moves from etcd to kvd by the steps of the manual, with no database restarted."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.clients.processes import CACHE, Process, run
from tests.clients.test_patroni import (
    SCOPE,
    Cluster,
    Node,
    assert_leads,
    skip_what_is_missing,
    user,
)
from tests.support.ctl import kvdctl
from tests.support.etcd import Etcd
from tests.support.server import Client

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    etcd = Etcd(tmp_path / "etcd")
    try:
        yield etcd.start()
    finally:
        etcd.stop()


@pytest.fixture
def cluster(etcd: Etcd, start: Callable[..., Process]) -> Iterator[Cluster]:
    """Two nodes on etcd, the first of which leads."""
    bin_dir = skip_what_is_missing()
    directory = Path(tempfile.mkdtemp(prefix="kvd-patroni-"))
    if user() is not None:
        shutil.chown(directory, "postgres", "postgres")
    server = SimpleNamespace(port=etcd.port, client=lambda: Client(etcd.port))
    nodes = [Node(directory, name, server, bin_dir) for name in ("pg0", "pg1")]
    for node in nodes:
        if user() is not None:
            shutil.chown(node.config, "postgres", "postgres")
    try:
        cluster = Cluster(server, nodes, start)
        cluster.start("pg0")
        assert cluster.leader() == "pg0"
        cluster.start("pg1")
        cluster.wait_for_order("pg0")
        yield cluster
    finally:
        for node in nodes:
            node.stop()
        shutil.rmtree(directory)


def patronictl(node: Node, *words: str) -> str:
    command = CACHE / "python" / "bin" / "patronictl"
    ended = run(command, "-c", node.config, *words, timeout_s=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("address", ["the same", "another"])
def test_patroni_keeps_its_leader_and_fails_over_afterwards(
    cluster, etcd, make_server, capsys, address
):
    first, second = cluster.nodes["pg0"], cluster.nodes["pg1"]
    moved = etcd.directory.with_name("moved")
    began = [node.query("SELECT pg_postmaster_start_time()") for node in (first, second)]
    timeline = first.query("SELECT timeline_id FROM pg_control_checkpoint()")

    assert "Success: cluster management is paused" in patronictl(first, "pause", "--wait")
    etcd.stop()
    assert kvdctl(capsys, "import", etcd.directory, moved)[::2] == (0, "")
    server = make_server(data_dir=moved)
    if address == "the same":
        server.listen = f"http://127.0.0.1:{etcd.port}"
    server.start()
    if address == "another":
        for node in (first, second):
            text = node.config.read_text()
            node.config.write_text(text.replace(f":{etcd.port}", f":{server.port}"))
            node.end_patroni()
            cluster.start(node.name)
    cluster.server = server
    cluster.wait_for_order("pg0")
    assert "Maintenance mode: on" in patronictl(first, "list")
    assert "Success: cluster management is resumed" in patronictl(first, "resume", "--wait")
    assert_leads(cluster, "pg0")

    # No database was restarted, and none was promoted.
    assert [node.query("SELECT pg_postmaster_start_time()") for node in (first, second)] == began
    assert first.query("SELECT timeline_id FROM pg_control_checkpoint()") == timeline

    # On kvd it switches over, and fails over.
    patronictl(first, "switchover", "acc", "--leader", "pg0", "--candidate", "pg1", "--force")
    assert_leads(cluster, "pg1")
    second.crash()
    cluster.wait_for("pg0 as leader", lambda keys: keys.get("leader") == "pg0")
    cluster.start("pg1")
    assert_leads(cluster, "pg0")
    assert server.client().get(f"{SCOPE}/initialize").json["node"]["createdIndex"] < 50
