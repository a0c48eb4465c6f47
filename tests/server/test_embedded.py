"""kvd/embedded.py: a server inside another program, which it leaves as it was."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kvd
from kvd import process
from kvd.client import Client, OutcomeUnknown
from kvd.config.load import parse
from kvd.net.listeners import AddressUnavailable
from kvd.server import KvdServer
from kvd.storage import failpoints
from kvd.storage.errors import StorageError
from kvd.storage.failpoints import Faults
from tests.support.log_texts import log_text
from tests.support.server import PATIENCE_S, free_port
from tests.support.server import Client as HttpClient
from tests.support.waiting import wait_until

SMALL = {"wal_segment_bytes": 1 << 20}


def test_it_serves_from_a_thread_and_keeps_its_data(tmp_path):
    with kvd.Server(tmp_path, **SMALL) as server, Client(server.url) as client:
        assert server.durable
        client.set("/a", "1")
    with kvd.Server(tmp_path, **SMALL) as server, Client(server.url) as client:
        assert client.get("/a").value == "1"
        assert server.data_dir == tmp_path


def test_in_memory_nothing_is_kept(caplog):
    with kvd.Server(memory=True, **SMALL) as server, Client(server.url) as client:
        assert not server.durable
        client.set("/a", "1")
        directory = server.data_dir
        assert directory.is_dir()
    assert not directory.exists()
    assert log_text("in memory: nothing is kept") in caplog.text
    with pytest.raises(RuntimeError):
        server.url  # noqa: B018 -- it raises


def test_it_serves_on_the_loop_of_its_host():
    async def host():
        seen = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(context))
        handler = loop.get_exception_handler()
        async with kvd.Server(memory=True, **SMALL) as server:
            async with kvd.AsyncClient(server.url) as client:
                await client.set("/a", "1")
                value = (await client.get("/a")).value
            loop.call_exception_handler({"message": "the host's own"})
        assert loop.get_exception_handler() is handler
        return value, [context["message"] for context in seen]

    assert asyncio.run(host()) == ("1", ["the host's own"])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def current_umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def state_of_the_process():
    return {
        "collector": (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()),
        "signals": [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)],
        "umask": current_umask(),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        "root": (logging.getLogger().level, list(logging.getLogger().handlers)),
        "threads": {thread.name for thread in threading.enumerate()},
        "files": open_files(),
    }


def test_many_of_them_leave_the_process_as_it_was():
    with kvd.Server(memory=True, **SMALL):
        pass  # what is loaded once
    before = state_of_the_process()
    servers = [kvd.Server(memory=True, **SMALL).start() for _ in range(4)]
    try:
        for number, server in enumerate(servers):
            with Client(server.url) as client:
                client.set("/a", str(number))
                client._run(
                    client._operations.call(
                        "PUT",
                        "/config/local/log",
                        body=b'{"Level":"DEBUG"}',
                        content_type="application/json",
                    )
                )
        for number, server in enumerate(servers):
            with Client(server.url) as client:
                assert client.get("/a").value == str(number)
    finally:
        for server in servers:
            server.stop()
        logging.getLogger("kvd").setLevel(logging.NOTSET)
    assert state_of_the_process() == before


def test_many_on_the_loops_of_two_threads_leave_the_process_as_it_was():
    async def host(count: int) -> int:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(count):
                server = await stack.enter_async_context(kvd.Server(memory=True, **SMALL))
                client = await stack.enter_async_context(kvd.AsyncClient(server.url))
                await client.set("/a", str(number))
        return count

    asyncio.run(host(1))  # what is loaded once
    before = state_of_the_process()
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(asyncio.run, [host(10), host(10)])) == [10, 10]
    assert state_of_the_process() == before


def test_a_damaged_directory_is_refused_and_left_alone(tmp_path):
    with kvd.Server(tmp_path, **SMALL):
        pass
    text = (tmp_path / "FORMAT").read_text()
    (tmp_path / "FORMAT").write_text(text.replace("cluster_id", "cluster_ip"))
    server = kvd.Server(tmp_path, **SMALL)
    before = state_of_the_process()
    with pytest.raises(StorageError, match="FORMAT"):
        server.start()
    assert state_of_the_process() == before
    (tmp_path / "FORMAT").write_text(text)
    with server, Client(server.url) as client:
        client.set("/a", "1")


def test_what_is_wrong_is_said_by_name(tmp_path):
    with pytest.raises(TypeError, match="no flag 'colour'"):
        kvd.Server(tmp_path, colour="red")
    with pytest.raises(ValueError, match="--event-history-limit"):
        kvd.Server(tmp_path, event_history_limit="many")
    with pytest.raises(TypeError):
        kvd.Server()
    with pytest.raises(ValueError, match="walBeforeSync: that would kill the program"):
        kvd.Server(tmp_path, enable_failpoints=True, failpoint="walBeforeSync=crash")
    with kvd.Server(tmp_path, **SMALL) as server:
        with pytest.raises(RuntimeError, match="already"):
            server.start()
        with pytest.raises(StorageError, match="in use by process"):
            kvd.Server(tmp_path).start()
    files = open_files()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(AddressUnavailable):
            kvd.Server(tmp_path, listen=url).start()
    assert open_files() == files
    # Nothing is left behind: it starts.
    with kvd.Server(tmp_path, **SMALL):
        pass


def test_a_failing_disk_ends_the_guest_and_not_its_host(tmp_path):
    port = free_port()
    faults = Faults()
    metrics = f"http://127.0.0.1:{port}"
    server = kvd.Server(tmp_path, listen_metrics_urls=metrics, faults=faults, **SMALL).start()
    with Client(server.url) as client, kvd.Server(memory=True, **SMALL) as other:
        client.set("/a", "1")
        faults.arm([failpoints.parse("walBeforeSync=error")])
        with pytest.raises(OutcomeUnknown):
            client.set("/a", "2")
        with Client(other.url) as neighbour:
            neighbour.set("/a", "2")
    assert isinstance(server.failed, OSError)
    faults.arm([])
    with contextlib.closing(HttpClient(port)) as monitor:
        assert monitor.request("GET", "/health").json["health"] == "false"
    with pytest.raises(OSError, match="Input/output"):
        server.url  # noqa: B018 -- it raises
    with pytest.raises(OSError, match="Input/output"):
        server.stop()
    with kvd.Server(tmp_path, **SMALL) as again, Client(again.url) as client:
        assert client.get("/a").value in ("1", "2")


@pytest.mark.parametrize("turns", range(5))
def test_a_crash_resets_what_has_just_been_accepted(tmp_path, turns):
    config = parse([f"--data-dir={tmp_path}", "--listen-client-urls=http://127.0.0.1:0"])

    async def host():
        server = KvdServer(config)
        await server.start()
        address = ("127.0.0.1", int(server.urls[0].rpartition(":")[2]))
        with contextlib.closing(socket.create_connection(address)) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.abandon()
            client.settimeout(PATIENCE_S)
            with contextlib.suppress(ConnectionError):
                assert client.recv(1) == b""

    with asyncio.Runner(loop_factory=process.new_loop()) as runner:
        runner.run(host())


class HeldSnapshot(Faults):
    """Holds a snapshot that has copied the index and not written anything yet."""

    def __init__(self):
        super().__init__()
        self.entered, self.released = threading.Event(), threading.Event()

    def reach(self, name):
        if name == "snapshotBeforeWrite":
            self.entered.set()
            assert self.released.wait(PATIENCE_S)
        super().reach(name)


def test_a_guest_that_fails_gives_up_the_snapshot_that_it_takes(tmp_path):
    faults = HeldSnapshot()
    server = kvd.Server(tmp_path, snapshot_count=1, faults=faults, **SMALL).start()
    with Client(server.url) as client:
        client.set("/a", "1")
        assert faults.entered.wait(PATIENCE_S)
        faults.arm([failpoints.parse("walBeforeSync=error")])
        with pytest.raises(OutcomeUnknown):
            client.set("/a", "2")
    scratch = tmp_path / "snap" / "scratch.tmp"
    assert scratch.exists()
    faults.released.set()
    wait_until(lambda: not scratch.exists())  # whatever has become of it
    assert list((tmp_path / "snap").glob("*.snap*")) == []
    with pytest.raises(OSError, match="Input/output"):
        server.stop()
    assert list((tmp_path / "snap").iterdir()) == []


def test_what_keeps_it_from_a_clean_stop_is_raised_there(tmp_path):
    server = kvd.Server(tmp_path / "data", **SMALL).start()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="data"):
        server.stop()
    with kvd.Server(tmp_path / "elsewhere", **SMALL) as again, Client(again.url) as client:
        client.set("/a", "1")


def test_the_faults_of_a_flag_are_armed_at_each_start(tmp_path):
    faults = Faults()
    flags = {"enable_failpoints": True, "failpoint": "stopBeforeLog=error"}
    server = kvd.Server(tmp_path, faults=faults, **flags, **SMALL).start()
    faults.arm([])
    server.stop()
    server.start()
    with pytest.raises(OSError, match="Input/output"):
        server.stop()


def test_after_a_crash_everything_acknowledged_is_there(tmp_path):
    server = kvd.Server(tmp_path, **SMALL).start()
    with Client(server.url) as client, client.watch("/none") as watch:
        waiter = threading.Thread(target=lambda: list(watch))
        waiter.start()
        for number in range(50):
            client.set(f"/k{number}", str(number))
        server.crash()
        watch.close()
        waiter.join(PATIENCE_S)
    with kvd.Server(tmp_path, **SMALL) as again, Client(again.url) as client:
        assert {node.value for node in client.ls("/")} == {str(n) for n in range(50)}


def test_after_a_fork_it_belongs_to_the_parent():
    with kvd.Server(memory=True, **SMALL) as server:
        child = os.fork()
        if child == 0:
            try:
                server.stop()
            except RuntimeError:
                os._exit(7)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        with Client(server.url) as client:
            client.set("/a", "1")


def test_a_start_that_is_interrupted_leaves_no_server(monkeypatch):
    class Interrupted(Exception):
        pass

    def interrupt(_number, _frame):
        raise Interrupted

    begin = kvd.Server._begin

    async def begin_and_interrupt(self):
        await begin(self)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(kvd.Server, "_begin", begin_and_interrupt)
    before = signal.signal(signal.SIGUSR1, interrupt)
    server = kvd.Server(memory=True, **SMALL)
    try:
        with pytest.raises(Interrupted):
            server.start()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert "kvd" not in {thread.name for thread in threading.enumerate()}
