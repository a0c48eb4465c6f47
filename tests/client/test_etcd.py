"""The client with a real etcd 3.4, which knows none of kvd's extras."""

import itertools

import pytest

from kvd.client import Client, CompareFailed, KeyNotFound, KvdError, NotSupported, Snapshot
from tests.clients.processes import Process, program, wait_for_port
from tests.support.server import free_port

pytestmark = pytest.mark.clients


@pytest.fixture
def etcd(tmp_path):
    """Starts an etcd, the same one each time; returns its URL."""
    port, peer_port = free_port(), free_port()
    url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    running: list[Process] = []

    def start() -> str:
        for process in running:
            process.kill()
        running[:] = [
            Process(
                *(program("etcd"), "--enable-v2=true", "--name", "one", "--data-dir", tmp_path),
                *("--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"one={peer}"),
            )
        ]
        wait_for_port(port, lambda: None)
        return url

    yield start
    for process in running:
        process.kill()


def write(client: Client, key: str, value: str) -> int:
    """Set a key, as soon as the server takes it; the index."""
    while True:
        try:
            return client.set(key, value).index
        except KvdError:
            continue


def test_operations_are_those_of_kvd(etcd, connect):
    url = etcd()
    with Client(url) as client:
        write(client, "/up", "1")
    kvd = connect(url)
    made = kvd.set("/d/a", "ü &%", ttl=100)
    assert kvd.get("/d/a").value == "ü &%"
    assert kvd.set("/d/a", "2", if_index=made.index).prev_node.value == "ü &%"
    kvd.refresh("/d/a", 1000)
    assert kvd.get("/d/a").ttl > 100
    with pytest.raises(CompareFailed):
        kvd.delete("/d/a", if_value="3")
    with pytest.raises(KeyNotFound):
        kvd.get("/none")
    with pytest.raises(NotSupported):
        kvd.history("/d")
    assert kvd.append("/q", "x").node.key.startswith("/q/0000")
    assert [node.key for node in kvd.iter_ls("/d", page=1)] == ["/d/a"]
    assert kvd.update("/n", lambda value: "1").node.value == "1"
    assert kvd.delete("/d", recursive=True).removes("/d/a")


def test_a_watch_delivers_each_event_once_over_restarts(etcd, connect):
    url = etcd()
    with Client(url) as client:
        up = write(client, "/up", "1")
    with Client(url) as client, connect(url).watch("/load", since=up) as watch:
        for _ in range(3):
            indexes = [write(client, f"/load/k{n % 3}", str(n)) for n in range(20)]
            received = [event.index for event in itertools.islice(watch, 10)]
            etcd()
            received += [event.index for event in itertools.islice(watch, 10)]
            assert received == indexes


def test_a_mirror_has_a_new_snapshot_after_a_gap(etcd, connect):
    url = etcd()
    with Client(url) as client, connect(url).follow("/m") as follow:
        write(client, "/m/a", "1")
        first = next(follow)
        assert isinstance(first, Snapshot)
        assert first.nodes["/m/a"].value == "1"
        # etcd keeps the last 1,000 events.
        for n in range(1100):
            last = write(client, "/m/b", str(n))
        second = next(follow)
        assert isinstance(second, Snapshot)
        assert second.after_gap
        assert second.index >= last
        assert second.nodes["/m/b"].value == "1099"
