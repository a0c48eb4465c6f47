"""Log output without a reader blocks nothing: lines are dropped, counted, and reported."""

import contextlib
import fcntl
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from kvd.log_output import QUEUE_BYTES_MAX, LineWriter, Output
from tests.monitoring.test_metrics import scrape
from tests.support.log_texts import log_text
from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, ROOT, free_port
from tests.support.waiting import wait_until

# As long as a line of the access log can be; a pipe and the queue are full after some thousand.
AGENT = "User-Agent: " + "x" * 900
LINES = 1500
DROPPED = re.compile(rb"(\d+) lines of the log were dropped here: (.+)")


class Unread:
    """A kvd whose standard error is a pipe that nobody reads until it is read at last."""

    def __init__(self, data_dir: Path, *flags: str) -> None:
        own = ("--data-dir", str(data_dir), "--listen-client-urls", "http://127.0.0.1:0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kvd", *own, *flags],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,  # nothing is read beyond the lines that are asked for
        )
        line = b""
        while b"listening on" not in line:
            line = self.stderr.readline()
            assert line, "it does not listen"
        found = re.search(rb"http://127\.0\.0\.1:(\d+)", line)
        assert found is not None
        self.port = int(found[1])

    @property
    def stderr(self) -> IO[bytes]:
        assert self.process.stderr is not None
        return self.process.stderr

    def ask(self, times: int = LINES) -> None:
        """Ask so often that an access log is more than is taken."""
        with Raw(self.port) as raw:
            for _ in range(0, times, 50):
                raw.send(request("GET", "/v2/keys/none", AGENT) * 50)
                for _ in range(50):
                    assert raw.answer().status == 404

    def metrics(self) -> dict[str, float]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port)) as connection:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def start_unread(tmp_path: Path) -> Iterator[Callable[..., Unread]]:
    with contextlib.ExitStack() as stack:

        def start(*flags: str) -> Unread:
            unread = Unread(tmp_path / "data", *flags)
            stack.callback(unread.stderr.close)
            stack.callback(unread.process.wait)
            stack.callback(unread.process.kill)
            return unread

        yield start


def dropped(unread: Unread, output: str = "stderr") -> float:
    return unread.metrics()[f'kvd_log_lines_dropped_total{{output="{output}"}}']


@pytest.mark.parametrize("form", ["text", "json"])
def test_it_is_served_and_stopped_and_the_reader_that_comes_back_is_informed(start_unread, form):
    unread = start_unread("--access-log", "--log-format", form)
    assert dropped(unread) == 0
    unread.ask()
    missing = dropped(unread)
    assert missing > 0
    # Reading goes on until the pipe's end, which comes when the server has ended.
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.extend(unread.stderr))
    reader.start()
    wait_until(lambda: any(DROPPED.search(line) for line in lines))
    assert unread.end() == 0
    reader.join(PATIENCE_S)
    received = sum(int(found[1]) for line in lines if (found := DROPPED.search(line)))
    assert received >= missing
    assert sum(b"/v2/keys/none" in line for line in lines) + received >= LINES
    assert b"stopped at index" in lines[-1]
    if form == "json":
        assert all(json.loads(line) for line in lines)


def test_a_stop_comes_at_once_though_nothing_is_read_at_all(start_unread):
    unread = start_unread("--access-log")
    unread.ask()
    assert unread.end() == 0


def test_unread_standard_output_holds_up_nothing_either(tmp_path):
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "kvd", "--access-log", "--log-outputs", "stdout"),
            *("--data-dir", tmp_path / "data"),
            *("--listen-client-urls", f"http://127.0.0.1:{(port := free_port())}"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert b"recovered" in process.stdout.readline()
        assert b"listening" in process.stdout.readline()
        with Raw(port) as raw:
            for _ in range(LINES):
                assert raw.ask("GET", "/v2/keys/none", AGENT).status == 404
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_changes_are_logged_though_an_access_log_has_filled_its_part_of_the_queue(start_unread):
    unread = start_unread("--access-log")
    unread.ask(1000)
    with Raw(unread.port) as raw:
        role = raw.ask("PUT", "/v2/auth/roles/later", body=b'{"role":"later"}')
        assert role.status == 201
    lines: list[bytes] = []
    reader = threading.Thread(target=lambda: lines.extend(unread.stderr))
    reader.start()
    assert unread.end() == 0
    reader.join(PATIENCE_S)
    assert any(b"PUT /v2/auth/roles/later, asked for by anybody" in line for line in lines)


def test_a_fifo_without_a_reader_gets_all_lines_once_there_is_one(make_server, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    server = make_server("--log-outputs", f"stderr,{path}").start()
    assert server.client().put("/a", 1).status == 201
    with path.open("rb") as fifo:
        assert server.terminate() == 0
        assert fifo.read().decode() == server.stderr
    # Without a reader it can be stopped as well.
    assert server.start().terminate() == 0


def test_a_full_disk_costs_lines_of_that_output_alone(make_server):
    server = make_server("--log-outputs", "stderr,/dev/full", "--access-log").start()
    client = server.client()
    for _ in range(3):
        assert client.get("/none").status == 404
    wait_until(lambda: dropped_of(client, "/dev/full") >= 5)
    assert dropped_of(client, "stderr") == 0
    assert server.terminate() == 0
    assert log_text("stopped at index") in server.stderr
    assert "Logging error" not in server.stderr


def dropped_of(client, output: str) -> float:
    return scrape(client)[f'kvd_log_lines_dropped_total{{output="{output}"}}']


def test_a_reader_that_has_gone_costs_nothing_but_lines(start_unread):
    unread = start_unread("--access-log")
    unread.stderr.close()
    unread.ask(100)
    assert dropped(unread) > 0
    assert unread.end() == 0


def test_a_refusal_ends_though_its_reason_is_not_read(tmp_path):
    reading, writing = os.pipe()
    fill(writing)
    try:
        for flags in (["--no-such-flag"], ["--data-dir", "/dev/null"]):
            ended = subprocess.run(
                [sys.executable, "-m", "kvd", *flags],
                cwd=ROOT,
                stderr=writing,
                timeout=PATIENCE_S,
                check=False,
            )
            assert ended.returncode in (64, 73)
    finally:
        os.close(reading)
        os.close(writing)


def fill(writing: int) -> int:
    """Make a pipe full; how many bytes that took."""
    os.set_blocking(writing, False)
    size = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            size += os.write(writing, b"." * 4096)
    os.set_blocking(writing, True)
    return size


class TestWriter:
    """The queue and its thread, on a pipe of one page."""

    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, int, LineWriter]]:
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        output = Output("x", writing, is_file=False)
        writer = LineWriter(output, lambda missing, why: f"missing {missing} {why}\n".encode())
        yield reading, writing, writer
        os.close(reading)
        writer.flush()  # its thread may not meet another file of this number
        os.close(writing)

    def test_what_is_missing_is_said_where_it_is_missing(self, pipe):
        reading, _, writer = pipe
        count = 0
        while not writer.dropped:
            writer.put(b"%d\n" % count)
            count += 1
        for _ in range(10):
            writer.put(b"dropped\n")
        found = b""
        while b"missing" not in found:
            found += os.read(reading, 65536)
        writer.put(b"after\n")
        writer.flush()
        found += os.read(reading, 65536)
        expected = [str(number) for number in range(count - 1)]
        expected += ["missing 11 nothing takes them", "after"]
        assert found.decode().splitlines() == expected
        assert writer.dropped == 11

    def test_until_half_of_the_queue_is_free_all_lines_are_dropped(self, pipe):
        reading, _, writer = pipe
        line = b"x" * 999 + b"\n"
        while not writer.dropped:
            writer.put(line)
        found = 0
        while found < QUEUE_BYTES_MAX // 4:
            found += len(os.read(reading, 65536))
        before = writer.dropped
        writer.put(line)
        assert writer.dropped == before + 1

    def test_a_descriptor_that_does_not_block_is_waited_for(self, pipe):
        reading, writing, writer = pipe
        os.set_blocking(writing, False)
        lines = [b"%d %s\n" % (number, b"x" * 500) for number in range(100)]
        for line in lines:
            writer.put(line)
        found = b""
        while len(found) < len(b"".join(lines)):
            found += os.read(reading, 65536)
        assert found == b"".join(lines)
        assert writer.dropped == 0

    def test_a_flush_waits_for_a_slow_reader_but_for_no_reader_only_a_moment(self, pipe):
        reading, _, writer = pipe
        for _ in range(20):
            writer.put(b"x" * 999 + b"\n")
        began = time.monotonic()
        writer.flush()
        assert time.monotonic() - began < PATIENCE_S / 2
        ended = threading.Event()
        flusher = threading.Thread(target=lambda: (writer.flush(), ended.set()))
        read = len(os.read(reading, 1000))
        flusher.start()
        while read < 20_000:
            read += len(os.read(reading, 1000))
        flusher.join(PATIENCE_S)
        assert ended.is_set()
        assert writer.dropped == 0

    def test_a_line_that_was_cut_off_by_an_error_does_not_spoil_the_next_one(self, tmp_path):
        path = tmp_path / "log"
        # The limit makes the system refuse in the middle of a line, as a full disk does.
        code = (
            "import resource, sys; from kvd.log_output import LineWriter, Output; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY)); "
            "w = LineWriter(Output.open(sys.argv[1]), lambda n, why: b'missing %d\\n' % n); "
            "w.put(b'whole\\n'); w.flush(); w.put(b'cut off\\n'); w.flush(); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2); "
            "w.put(b'next\\n'); w.flush()"
        )
        subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True)
        assert path.read_text().splitlines() == ["whole", "cut ", "missing 1", "next"]
