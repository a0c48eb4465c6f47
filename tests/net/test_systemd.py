"""systemd: notifications to it, and sockets that it hands over. The tests play systemd."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvd.net.systemd import Notifier, take_sockets
from tests.support.server import HANDED_OVER, PATIENCE_S, ROOT, Client, free_port, handed_over

UNAVAILABLE = 69


class Manager:
    """The end of the notification socket that is systemd's."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        self._socket.settimeout(PATIENCE_S)

    def next(self) -> list[str]:
        """The lines of the next message; it is waited for."""
        return self._socket.recv(4096).decode().splitlines()

    def waiting(self) -> list[list[str]]:
        """The messages that are there already."""
        messages = []
        while select.select([self._socket], [], [], 0)[0]:
            messages.append(self.next())
        return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with contextlib.closing(Manager(str(tmp_path / "notify"))) as manager:
        yield manager


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Callable[..., socket.socket]]:
    """Makes listening sockets, which live until the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(path: str = "", host: str = "127.0.0.1") -> socket.socket:
            family = socket.AF_UNIX if path else socket.AF_INET6 if ":" in host else socket.AF_INET
            made = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            made.bind(str(tmp_path / path) if path else (host, 0))
            made.listen()
            return made

        yield make


class TestNotifications:
    def test_ready_is_announced_once_requests_are_answered(self, make_server, manager):
        port = free_port()
        server = make_server(
            *("--enable-failpoints", "--failpoint", "startAfterLock=delay:0.5"),
            listen=f"http://127.0.0.1:{port}",
            environment={"NOTIFY_SOCKET": manager.address},
        )
        starting = threading.Thread(target=server.start)
        starting.start()
        extension, status = manager.next()
        assert extension.startswith("EXTEND_TIMEOUT_USEC=")
        assert status == f"STATUS=recovering {server.data_dir}"
        assert manager.next() == ["READY=1", f"STATUS=serving http://127.0.0.1:{port}"]
        with contextlib.closing(Client(port)) as client:
            assert client.put("/a", "1").status == 201
        starting.join()

    def test_a_refused_start_is_never_ready(self, tmp_path, manager):
        (tmp_path / "data").write_text("not a directory")
        environment = {**os.environ, "NOTIFY_SOCKET": manager.address}
        command = [sys.executable, "-m", "kvd", "--data-dir", str(tmp_path / "data")]
        command += ["--listen-client-urls", "http://127.0.0.1:0"]
        ended = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        assert ended.returncode != 0
        assert not any("READY=1" in message for message in manager.waiting())

    def test_stopping_is_announced(self, make_server, manager):
        server = make_server(environment={"NOTIFY_SOCKET": manager.address}).start()
        assert "READY=1" in [*manager.next(), *manager.next()]
        server.signal(signal.SIGTERM)
        assert "STOPPING=1" in manager.next()
        assert server.wait() == 0

    def test_an_abstract_address_is_reached(self, make_server):
        with contextlib.closing(Manager(f"@kvd-test-{os.getpid()}")) as manager:
            make_server(environment={"NOTIFY_SOCKET": manager.address}).start()
            assert "READY=1" in [*manager.next(), *manager.next()]

    def test_the_watchdog_is_patted_until_the_loop_stands_still(self, make_server, manager):
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "50000"}
        server = make_server("--enable-failpoints", environment=environment)
        # The index is written on the loop, by the tick: so long nothing else runs there.
        server.start("--failpoint", "indexBeforeCommit=delay:1@2")
        while manager.next() != ["WATCHDOG=1"]:
            pass
        assert manager.next() == ["WATCHDOG=1"]
        last, gaps_s = time.monotonic(), []
        server.client().put("/a", "1")
        while not gaps_s or (gaps_s[-1] < 0.9 and len(gaps_s) < 400):
            assert manager.next() == ["WATCHDOG=1"]
            last, before = time.monotonic(), last
            gaps_s.append(last - before)
        assert gaps_s[-1] >= 0.9

    def test_a_watchdog_of_another_process_is_left_alone(self, manager):
        environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "50000"}
        loop = asyncio.new_event_loop()
        with contextlib.closing(loop):
            Notifier.take({**environment, "WATCHDOG_PID": "1"}).serving(loop, "up")
            assert manager.waiting() == [["READY=1", "STATUS=up"]]
            Notifier.take({**environment, "WATCHDOG_PID": str(os.getpid())}).serving(loop, "up")
            assert manager.waiting() == [["READY=1", "STATUS=up"], ["WATCHDOG=1"]]

    def test_a_reload_is_announced_with_its_time(self, manager):
        notifier = Notifier.take({"NOTIFY_SOCKET": manager.address})
        began_us = time.monotonic_ns() // 1000
        notifier.reloading()
        reloading, stamp = manager.next()
        assert reloading == "RELOADING=1"
        name, _, value = stamp.partition("=")
        assert name == "MONOTONIC_USEC"
        assert began_us <= int(value) <= time.monotonic_ns() // 1000

    def test_a_manager_that_has_gone_is_warned_of_once(self, tmp_path, caplog):
        notifier = Notifier.take({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
        notifier.ready("serving")
        notifier.stopping("answering")
        (record,) = caplog.records
        assert "READY=1" in record.getMessage()

    def test_without_a_manager_nothing_is_said(self, caplog):
        notifier = Notifier.take({})
        loop = asyncio.new_event_loop()
        with contextlib.closing(loop):
            notifier.starting(loop, "recovering")
            notifier.serving(loop, "serving")
        assert caplog.records == []

    def test_what_is_meant_for_kvd_reaches_no_child(self):
        environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
        environment |= {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a", "PATH": "/"}
        Notifier.take(environment)
        assert take_sockets(environment) == []
        assert environment == {"PATH": "/"}


class TestSockets:
    def test_they_are_served_in_place_of_the_flag(self, make_server, listener):
        first, second = listener(), listener()
        flag = "http://127.0.0.1:0,http://127.0.0.1:0"
        server = make_server(listen=flag, **handed_over(first, second)).start()
        urls = [f"http://127.0.0.1:{given.getsockname()[1]}" for given in (first, second)]
        assert server.urls == urls
        assert server.client(urls[0]).put("/a", "1").status == 201
        assert server.client(urls[1]).get("/a").json["node"]["value"] == "1"
        members = server.client(urls[0]).request("GET", "/v2/members").json["members"]
        assert sorted(members[0]["clientURLs"]) == sorted(urls)

    def test_a_unix_socket_stays_when_kvd_goes(self, make_server, listener, tmp_path):
        path = tmp_path / "kvd.sock"
        server = make_server(**handed_over(listener(path.name))).start()
        assert server.url == f"unix://{path}"
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(path))
            client.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            assert b"etcdserver" in client.makefile("rb").read()
        assert server.terminate() == 0
        assert path.is_socket()

    def test_connections_between_two_starts_are_answered_by_the_second(self, make_server, listener):
        listening = listener()
        server = make_server(**handed_over(listening)).start()
        server.client().put("/a", "1")
        assert server.terminate() == 0
        with contextlib.closing(socket.create_connection(listening.getsockname())) as waiting:
            waiting.settimeout(PATIENCE_S)
            waiting.sendall(b"GET /v2/keys/a HTTP/1.0\r\n\r\n")
            server.start()
            assert b'"value":"1"' in waiting.makefile("rb").read()

    def test_those_of_another_process_are_left_alone(self, make_server):
        server = make_server(environment={"LISTEN_PID": "1", "LISTEN_FDS": "1"}).start()
        assert server.client().request("GET", "/version").status == 200

    def test_what_cannot_be_served_is_refused_in_one_line(self, tmp_path):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as deaf,
            (tmp_path / "file").open("w") as file,
        ):
            deaf.bind(("127.0.0.1", 0))
            for given, reason in (
                (datagrams.fileno(), "not a stream socket"),
                (deaf.fileno(), "does not listen"),
                (file.fileno(), "handed over: Socket operation on non-socket"),
            ):
                ended = self.refused(tmp_path, given, "1")
                assert reason in ended.stderr
            assert 'found "x"' in self.refused(tmp_path, deaf.fileno(), "x").stderr

    @staticmethod
    def refused(tmp_path: Path, given: int, count: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", HANDED_OVER, str(given)]
        command += ["--data-dir", str(tmp_path / "data")]
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "LISTEN_FDS": count},
            pass_fds=[given],
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert ended.returncode == UNAVAILABLE, ended.stderr
        assert len(ended.stderr.splitlines()) == 1
        return ended

    @pytest.mark.skipif(
        shutil.which("systemd-socket-activate") is None, reason="there is no systemd here"
    )
    def test_the_first_client_starts_it_and_is_answered(self, tmp_path):
        port = free_port()
        command = ["systemd-socket-activate", "--listen", f"127.0.0.1:{port}"]
        command += ["--setenv", f"PYTHONPATH={ROOT}", sys.executable, "-m", "kvd"]
        command += ["--data-dir", str(tmp_path / "data")]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                assert "Listening on" in process.stderr.readline()
                with contextlib.closing(Client(port)) as client:
                    assert client.put("/a", "1").status == 201
            finally:
                process.terminate()
            assert process.wait(PATIENCE_S) == 0
