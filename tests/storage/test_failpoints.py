"""storage/failpoints.py: faults happen where and when they are asked for, and nowhere else."""

import errno
import os
import subprocess
import sys
import time

import pytest

from kvd.storage import disk, failpoints
from kvd.storage.failpoints import Faults
from tests.support.log_texts import log_text
from tests.support.server import ROOT, run_kvd

USAGE = 64


def armed(*texts):
    return Faults(map(failpoints.parse, texts))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("walBeforeSync=crash", ("walBeforeSync", "crash", 0, 0)),
        ("walBeforeSync=crash@3", ("walBeforeSync", "crash", 0, 3)),
        ("walBeforeSync=error", ("walBeforeSync", "error", errno.EIO, 0)),
        ("walBeforeSync=error:ENOSPC@1", ("walBeforeSync", "error", errno.ENOSPC, 1)),
        ("walBeforeSync=error:28", ("walBeforeSync", "error", errno.ENOSPC, 0)),
        ("walBeforeSync=delay:0.5", ("walBeforeSync", "delay", 0.5, 0)),
        ("walBeforeWrite=tear:17", ("walBeforeWrite", "tear", 17, 0)),
        ("segmentBeforeHeader=short:0@2", ("segmentBeforeHeader", "short", 0, 2)),
    ],
)
def test_a_fault_is_read(text, fault):
    assert failpoints.parse(text) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nowhere=crash", "there is no failpoint 'nowhere'; there are startAfterLock, "),
        ("walBeforeSync", "expected walBeforeSync= and one of crash, "),
        ("walBeforeSync=", "expected walBeforeSync= and one of crash, "),
        ("walBeforeSync=explode", "one of crash, "),
        ("walBeforeSync=crash:1", "a crash takes no argument"),
        ("walBeforeSync=crash@0", "a number from 1 on"),
        ("walBeforeSync=crash@x", "a number from 1 on"),
        ("walBeforeSync=error:EWHAT", "an error such as EIO"),
        ("walBeforeSync=error:99999", "an error such as EIO"),
        ("walBeforeSync=delay", "a number of seconds"),
        ("walBeforeSync=delay:nan", "a number of seconds"),
        ("walBeforeSync=tear:1", "nothing is written there"),
        ("walBeforeWrite=tear:-1", "a number of bytes"),
        ("walBeforeWrite=tear:1.5", "a number of bytes"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_line(text, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        failpoints.parse(text)
    assert "\n" not in str(refused.value)


def test_nothing_happens_where_nothing_is_armed():
    faults = Faults()
    for name in failpoints.NAMES:
        faults.reach(name)


def test_every_place_is_somewhere_in_the_code_and_nowhere_else():
    code = "".join(
        path.read_text()
        for path in (ROOT / "kvd" / "storage").rglob("*.py")
        if path.name != "failpoints.py"
    )
    for name, meaning in failpoints.NAMES.items():
        assert code.count(f'"{name}"') == 1, name
        assert meaning


def test_an_error_comes_the_nth_time_only():
    faults = armed("walBeforeSync=error:EDQUOT@2")
    faults.reach("walBeforeSync")
    faults.reach("walAfterSync")
    with pytest.raises(OSError, match=os.strerror(errno.EDQUOT)) as refused:
        faults.reach("walBeforeSync")
    assert refused.value.errno == errno.EDQUOT
    faults.reach("walBeforeSync")


def test_without_a_number_it_comes_every_time():
    faults = armed("walBeforeSync=error")
    for _ in range(3):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            faults.reach("walBeforeSync")


def test_a_place_can_be_armed_more_than_once():
    faults = armed("walBeforeSync=error:EIO@1", "walBeforeSync=error:EFBIG@2")
    for code in (errno.EIO, errno.EFBIG):
        with pytest.raises(OSError, match=os.strerror(code)):
            faults.reach("walBeforeSync")


def test_a_delay_takes_time():
    faults = armed("walBeforeSync=delay:0.05")
    began = time.monotonic()
    faults.reach("walBeforeSync")
    assert time.monotonic() - began >= 0.05


def test_a_short_write_says_how_much_was_written(tmp_path):
    faults = armed("walBeforeWrite=short:3")
    fd = disk.create(tmp_path / "file")
    with pytest.raises(disk.PartialWrite, match=os.strerror(errno.ENOSPC)) as refused:
        faults.reach_write("walBeforeWrite", fd, b"abcdef", 2)
    os.close(fd)
    assert refused.value.written == 3
    assert (tmp_path / "file").read_bytes() == b"\0\0abc"


def test_a_torn_write_is_the_end_of_the_process(tmp_path):
    program = (
        "from kvd.storage import disk, failpoints; from pathlib import Path; "
        "faults = failpoints.Faults([failpoints.parse('walBeforeWrite=tear:4')]); "
        f"fd = disk.create(Path({str(tmp_path / 'file')!r})); "
        "faults.reach_write('walBeforeWrite', fd, b'abcdef', 0); disk.write_at(fd, b'x', 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert ended.returncode == -9
    assert (tmp_path / "file").read_bytes() == b"abcd"


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--failpoint", "walBeforeSync=crash"], "--failpoint needs --enable-failpoints"),
        (["--enable-failpoints", "--failpoint", "here=crash"], "there is no failpoint 'here'"),
        (["--enable-failpoints", "--failpoint=walBeforeSync=now"], "one of crash, error"),
    ],
)
def test_the_server_refuses_faults_it_cannot_make(tmp_path, argv, reason):
    ended = run_kvd("--data-dir", str(tmp_path / "data"), *argv)
    assert ended.returncode == USAGE
    assert reason in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_enabling_them_makes_no_fault(make_server):
    server = make_server("--enable-failpoints").start()
    assert server.client().put("/a", "1").status == 201
    assert "failpoints" not in server.stderr
    assert server.terminate() == 0


def test_what_is_armed_is_logged_and_may_be_given_in_pieces(make_server):
    flags = ["--enable-failpoints", "--failpoint", "walBeforeSync=delay:0,walAfterSync=delay:0"]
    server = make_server(*flags, "--failpoint=indexBeforeCommit=delay:0@7").start()
    (line,) = [line for line in server.stderr.splitlines() if log_text("are armed") in line]
    assert "walBeforeSync=delay:0, walAfterSync=delay:0, indexBeforeCommit=delay:0@7" in line
