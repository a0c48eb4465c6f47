"""The surroundings of the process: descriptors that are closed, signals that mean nothing."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvd.process import FreedMemory
from tests.support.log_texts import log_text
from tests.support.memory import MIB, anonymous_bytes
from tests.support.raw import Raw, request
from tests.support.server import PATIENCE_S, ROOT, run_kvd
from tests.support.tls import LOOPS

LARGE = b"v" * 1_500_000

CLOSED = [(0,), (1,), (2,), (0, 1, 2)]


def closing(closed: tuple[int, ...], *argv: str) -> list[str]:
    """A command that runs Python with these descriptors closed."""
    redirect = " ".join(f"{number}>&-" for number in closed)
    return ["sh", "-c", f"exec {shlex.join([sys.executable, *argv])} {redirect}"]


@pytest.mark.parametrize(
    ("closed", "loop"),
    [*((closed, "uvloop") for closed in CLOSED), (CLOSED[-1], "asyncio")],
    ids=str,
)
def test_with_standard_descriptors_closed_it_serves_and_stops_cleanly(tmp_path, closed, loop):
    log = tmp_path / "log"
    os.mkfifo(log)
    flags = ["--data-dir", str(tmp_path / "data"), "--listen-client-urls", "http://127.0.0.1:0"]
    command = closing(closed, *LOOPS[loop], *flags, "--log-outputs", str(log))
    with subprocess.Popen(command, cwd=ROOT) as process, log.open() as lines:
        assert "recovered" in next(lines)
        assert "listening on" in next(lines)
        for number in closed:
            assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path(os.devnull)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert log_text("stopped at index") in lines.read()


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)], ids=str)
def test_kvdctl_does_its_work_with_standard_descriptors_closed(make_server, closed):
    server = make_server().start()
    server.client().put("/a", 1)
    server.terminate()
    command = closing(closed, "-m", "kvd.ctl.main", "verify", str(server.data_dir))
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ("good" in ended.stdout) == (1 not in closed)


def test_a_refusal_has_its_status_though_it_cannot_be_printed():
    ended = subprocess.run(closing((0, 1, 2), "-m", "kvd", "--no-such-flag"), cwd=ROOT, check=False)
    assert ended.returncode == 64


@pytest.mark.parametrize(
    "argv",
    [
        ["-m", "kvd", "--help"],
        ["-m", "kvd", "--print-config"],
        ["-m", "kvd.ctl.main", "failpoints"],
    ],
    ids=lambda argv: argv[-1],
)
def test_output_that_cannot_be_written_is_one_line_and_74(argv):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, *argv],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ended.returncode == 74
    (line,) = ended.stderr.splitlines()
    assert "No space left on device" in line


@pytest.mark.parametrize("loop", LOOPS)
def test_a_signal_that_means_nothing_is_ignored_and_logged_once(make_server, loop):
    server = make_server(launch=LOOPS[loop]).start()
    client = server.client()
    numbers = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGRTMIN + 3]
    for number in numbers:
        os.kill(server.pid, number)
        name = getattr(number, "name", "SIGRTMIN+3")
        server.wait_for_log(f"WARNING {name} means nothing to kvd: ignored")
        for _ in range(3):
            os.kill(server.pid, number)
            assert client.put("/a", 1).status in (200, 201)
    assert server.terminate() == 0
    assert server.stderr.count(log_text("means nothing to kvd")) == len(numbers)


@pytest.mark.parametrize(
    "number",
    [signal.SIGUSR1, signal.SIGHUP, signal.SIGTTOU],
    ids=str,
)
def test_a_signal_does_not_end_a_stop_either(make_server, number):
    server = make_server().start()
    server.client().put("/a", 1)
    server.signal(signal.SIGSTOP)
    server.signal(signal.SIGTERM)
    os.kill(server.pid, number)
    server.signal(signal.SIGCONT)
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.pid, number)
    assert server.wait() == 0
    assert log_text("stopped at index") in server.stderr


def test_sighup_without_certificates_changes_nothing(make_server):
    server = make_server().start()
    server.signal(signal.SIGHUP)
    server.wait_for_log("no certificates to reload")
    assert server.client().put("/a", 1).status == 201
    assert server.terminate() == 0


def test_a_parent_that_blocks_signals_does_not_make_it_unstoppable(make_server):
    blocking = (
        "import signal, sys; "
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGHUP]); "
        "from kvd.__main__ import main; sys.exit(main())"
    )
    server = make_server(launch=("-c", blocking)).start()
    assert server.terminate() == 0


# Separators of lines, what a terminal obeys, marks of direction, and a byte that is no UTF-8.
ODD = "a\x1eb\nc\rd\u2028e\x85f\x1b[2Jg\u202eh\x7fi" + b"\xff".decode(errors="surrogateescape")


@pytest.mark.parametrize(
    "argv",
    [
        ["--name", "-name={}"],
        ["--no-such-{}"],
        ["--config-file", "/none/{}"],
        ["--log-outputs", "/none/{}"],
        ["--data-dir", "/dev/null/{}"],
        ["--listen-client-urls", "http://{}:1"],
        ["--cert-file=/none/{}", "--key-file=/none/{}", "--listen-client-urls=https://[::1]:0"],
    ],
    ids=lambda argv: argv[0],
)
def test_whatever_a_refusal_quotes_it_is_one_printable_line(tmp_path, argv):
    ended = run_kvd("--data-dir", str(tmp_path), *(text.replace("{}", ODD) for text in argv))
    assert ended.returncode != 0
    assert_one_line(ended.stderr)


@pytest.mark.parametrize("argv", [["{}"], ["verify", "/none/{}"], ["digest", "--to-index", "{}"]])
def test_whatever_kvdctl_quotes_it_is_one_printable_line(argv):
    ended = run_ctl(*(text.replace("{}", ODD) for text in argv))
    assert ended.returncode != 0
    assert_one_line(ended.stderr)


def test_kvdctl_works_in_a_directory_of_any_name(make_server, tmp_path):
    data = tmp_path / ODD
    server = make_server(data_dir=data).start()
    server.client().put("/a", 1)
    assert server.terminate() == 0
    assert all(line.isprintable() for line in server.stderr.splitlines())
    ended = run_ctl("restore", str(data), str(tmp_path / f"copy {ODD}"))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert all(line.isprintable() for line in ended.stdout.split("\n"))


def run_ctl(*argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "kvd.ctl.main", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def assert_one_line(text: str) -> None:
    assert text.endswith("\n")
    assert text[:-1].isprintable(), ascii(text)


def test_a_configuration_that_is_printed_is_one_line_for_each_setting(tmp_path):
    path = tmp_path / "a\x1eb\nc\u2028.yml"
    path.write_text("name: mine\n")
    printed = run_kvd("--config-file", str(path), "--print-config").stdout
    assert all(line.isprintable() for line in printed.split("\n"))
    (line,) = [line for line in printed.splitlines() if line.startswith("name: ")]
    assert line.startswith("name: mine ")


def page_faults(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def test_memory_for_values_is_reused_from_one_write_to_the_next(fresh_server):
    """What the system gives again takes a page fault for each 4 KiB: 7 of them for each write."""
    client = fresh_server.client()
    faults = []
    for _ in range(3):
        before = page_faults(fresh_server.pid)
        for number in range(200):
            client.put(f"/{number % 50}", str(number % 10) * 10_000)
        faults.append(page_faults(fresh_server.pid) - before)
    assert min(faults) < 200


def test_memory_is_given_back_once_nothing_has_been_written_for_a_tick():
    positions = [1, 1, 1, 2, 3, 3, 3, 4, 4, 5]
    given_back: list[int] = []
    memory = FreedMemory(lambda: positions[0], lambda: given_back.append(positions[0]))
    while positions:
        memory.tick()
        del positions[0]
    assert given_back == [3, 4]


def test_memory_of_values_that_came_at_once_goes_back_to_the_system(fresh_server):
    client = fresh_server.client()
    client.put("/a", 1)
    before = anonymous_bytes(fresh_server)
    with contextlib.ExitStack() as stack:
        raws = [stack.enter_context(Raw(fresh_server.port)) for _ in range(30)]
        for raw in raws:
            raw.send(request("PUT", "/v2/keys/b?noValueOnSuccess=true", body=b"value=" + LARGE))
        assert {raw.answer().status for raw in raws} <= {200, 201}
    # By the tick; a test that waits in vain is ended.
    while anonymous_bytes(fresh_server) > before + 6 * MIB:
        client.get("/a")
