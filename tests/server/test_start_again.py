"""A process that only needs another start begins again, as it was begun."""

import os
import subprocess
import sys

import pytest

from tests.support.server import PATIENCE_S, ROOT

# Each start writes a line: its process, its arguments, and a variable that a server takes away.
SERVER = """
import os, sys
from kvd.__main__ import main
from kvd.storage.errors import Behind, StorageError
starts, error = sys.argv[1:3]

def make_server(*_, on_fatal, **__):
    with open(starts, "a") as file:
        print(os.getpid(), sys.argv[3:], file=file)
    if sum(1 for _ in open(starts)) > 1:
        os._exit(0)
    on_fatal({"behind": Behind, "other": StorageError}[error]("told"), 75)

main(["--data-dir", starts + ".data"], make_server)
"""


@pytest.mark.parametrize(("error", "status", "starts"), [("behind", 0, 2), ("other", 75, 1)])
def test_a_replica_that_the_log_was_trimmed_past_starts_again(tmp_path, error, status, starts):
    file = tmp_path / "starts"
    ended = subprocess.run(
        [sys.executable, "-c", SERVER, file, error, "with spaces", "--flag"],
        cwd=ROOT,
        env=os.environ | {"NOTIFY_SOCKET": ""},
        timeout=PATIENCE_S,
        check=False,
    )
    lines = file.read_text().splitlines()
    assert (ended.returncode, len(lines), len(set(lines))) == (status, starts, 1)
    assert "['with spaces', '--flag']" in lines[0]
