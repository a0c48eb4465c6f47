"""The same over each way to a server: plain, TLS, a socket in the file system, several, users."""

import contextlib
import itertools
from pathlib import Path

import pytest

from kvd.client import Client, CompareFailed, KvdError, Unauthorized
from tests.clients.processes import Process, program
from tests.support.certs import Authority, Pair, client_context
from tests.support.server import Server, free_port
from tests.support.waiting import wait_until


def start_kvd(directory: Path, pair: Pair, stack: contextlib.ExitStack) -> dict[str, str]:
    server = Server(
        directory / "data",
        *("--advertise-client-urls", "http://127.0.0.1:2379"),
        *("--cert-file", str(pair.cert), "--key-file", str(pair.key)),
        listen=f"http://127.0.0.1:0,https://127.0.0.1:0,unix://{directory}/s",
    )
    stack.callback(server.stop)
    server.start()
    return {url.partition(":")[0]: url for url in server.urls}


def start_etcd(directory: Path, pair: Pair, stack: contextlib.ExitStack) -> dict[str, str]:
    urls = [f"{scheme}://127.0.0.1:{free_port()}" for scheme in ("http", "https")]
    peer = f"http://127.0.0.1:{free_port()}"
    process = Process(
        *(program("etcd"), "--enable-v2=true", "--name", "one", "--data-dir", directory / "data"),
        # A socket is a file in the folder in which it runs, whose name has a port.
        *("--listen-client-urls", ",".join([*urls, "unix://s:1"])),
        *("--advertise-client-urls", urls[0]),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"one={peer}"),
        *("--cert-file", pair.cert, "--key-file", pair.key),
        cwd=directory,
    )
    stack.callback(process.kill)
    return {"http": urls[0], "https": urls[1], "unix": f"unix://{directory}/s:1"}


@pytest.fixture(params=[start_kvd, pytest.param(start_etcd, marks=pytest.mark.clients)])
def ways(request, tmp_path):
    """What `connect` is given, for each way."""
    authority = Authority(tmp_path)
    with contextlib.ExitStack() as stack:
        urls = request.param(tmp_path, authority.sign("server", "127.0.0.1"), stack)
        with Client(urls["http"]) as client:
            wait_until(lambda: is_up(client))
            for path, body in (
                ("/v2/auth/users/root", b'{"user":"root","password":"pw"}'),
                ("/v2/auth/enable", b""),
            ):
                kind = "application/json"
                client._run(client._operations.call("PUT", path, body=body, content_type=kind))
        yield {
            "plain": (urls["http"], {}),
            "tls": (urls["https"], {"tls": client_context(authority.cert)}),
            "unix": (urls["unix"], {}),
            "several": (["http://127.0.0.1:1", urls["http"]], {}),
            "user": (urls["http"], {"username": "root", "password": "pw"}),
        }


def is_up(client: Client) -> bool:
    try:
        return bool(client.set("/up", "1").index)
    except KvdError:
        return False


def test_all_ways_lead_to_the_same(ways, connect):
    for way, (url, options) in ways.items():
        kvd = connect(url, namespace=way, **options)
        made = kvd.set("/a", "ü &%", ttl=100)
        assert kvd.get("/a").value == "ü &%"
        kvd.set("/a", "2", if_index=made.index)
        with pytest.raises(CompareFailed):
            kvd.delete("/a", if_value="3")
        with kvd.watch("/", since=made.index) as watch:
            assert [event.node.value for event in itertools.islice(watch, 2)] == ["ü &%", "2"]
        with Client(url, namespace=way, **options) as client:
            with client.lock("/lock") as held:
                held.check()
            assert client.counter("/n").add() == 1
            item = client.queue("/q").put("x")
            with client.queue("/q").take(timeout=5) as taken:
                assert taken.id == item
    with pytest.raises(Unauthorized):
        connect(ways["plain"][0], username="root", password="no").set("/a", "1")
