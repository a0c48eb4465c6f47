"""Starts that are refused in one line."""

import subprocess

# Of sysexits.h: the command line, the data, a directory that cannot be had, a format of the future.
USAGE, DATA, CANNOT_CREATE, CONFIGURATION = 64, 65, 73, 78
ANY_PORT = ("--listen-client-urls", "http://127.0.0.1:0")


def assert_refused(ended: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """It ended with a status of its own and one line that says why."""
    assert ended.returncode not in (0, 1), ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    line = ended.stderr.splitlines()[-1]
    for word in words:
        assert word in line
