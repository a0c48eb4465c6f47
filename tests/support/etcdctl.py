"""Command lines of etcdctl with what it prints of kvd: recorded once, compared with kvdctl.

python -m tests.support.etcdctl     records it again; needs an etcdctl that speaks v2
"""

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.support.server import PATIENCE_S, ROOT, Server

LINES = (
    ROOT / "tests" / "ctl" / "etcdctl_lines.txt",
    ROOT / "tests" / "clients" / "etcdctl_commands.txt",
)
RECORD = ROOT / "tests" / "ctl" / "etcdctl_outputs.jsonl"
FLAGS = ("--initial-advertise-peer-urls", "http://localhost:2380")
# Times and what is left of them, and ids.
_VARYING = [
    (r"\d{4}-\d\d-\d\d[ T][\d:.]+Z?", "TIME"),
    (r'(TTL: |"ttl":)(3000|2\d{3})\b', r"\1SECONDS"),
    (r"\b[0-9a-f]{13,16}\b", "ID"),
]


class Said(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


Run = Callable[[list[str], bytes], Said]


def lines() -> list[str]:
    """The command lines; a quoted value may go over several lines."""
    found: list[str] = []
    for path in LINES:
        for line in path.read_text().splitlines():
            if found and found[-1].replace('\\"', "").count('"') % 2:
                found[-1] += "\n" + line
            elif line and not line.startswith("#"):
                found.append(line)
    return found


def answers(server: Server, run: Run) -> dict[str, Said]:
    """Return the results of a program on a fresh server, by number and line."""
    found = {}
    for number, whole in enumerate(lines()):
        line, _, stdin = whole.partition(" <")
        argv = shlex.split(re.sub(r"\{(/[^}]*?)(-\d+)?\}", lambda m: _index_of(server, m), line))
        data = stdin.encode().decode("unicode_escape").encode()
        said = run(["--endpoints", server.url, *argv], data)
        found[f"{number} {line}"] = Said(
            said.status, _same(said.out, server), _same(said.err, server)
        )
    return found


def _index_of(server: Server, found: re.Match[str]) -> str:
    headers = {"Authorization": "Basic cm9vdDpyb290c2VjcmV0"}  # some lines enable users
    answer = server.client().request("GET", f"/v2/keys{found[1]}", headers=headers)
    return str(answer.json["node"]["modifiedIndex"] + int(found[2] or 0))


def _same(text: str, server: Server) -> str:
    text = text.replace(server.url, "URL")
    for pattern, name in _VARYING:
        text = re.sub(pattern, name, text)
    # etcdctl has stty turn the echo off, which complains where there is no terminal.
    return text.replace("stty: 'standard input': Inappropriate ioctl for device\n", "")


def etcdctl(argv: list[str], stdin: bytes) -> Said:
    """Run the real one."""
    ended = subprocess.run(
        ["etcdctl", *argv],
        env={**os.environ, "ETCDCTL_API": "2"},
        input=stdin,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Said(ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def recorded() -> dict[str, Said]:
    """Return the results of etcdctl."""
    pairs = (json.loads(line) for line in RECORD.read_text().splitlines())
    return {line: Said(*said) for line, said in pairs}


def main() -> None:
    """Record what etcdctl says of a fresh kvd."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory) / "data", *FLAGS).start()
        try:
            found = answers(server, etcdctl)
        finally:
            server.stop()
    rows = (json.dumps([line, said], ensure_ascii=False) + "\n" for line, said in found.items())
    RECORD.write_text("".join(rows))


if __name__ == "__main__":
    main()
