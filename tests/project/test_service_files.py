"""The files in scripts/deploy/ that run kvd as a service: the systemd units and the Dockerfile."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import PATIENCE_S, ROOT, Server

SCRIPTS = ROOT / "scripts" / "deploy"
DOCKERFILE = (SCRIPTS / "Dockerfile").read_text().replace("\\\n", " ").splitlines()

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here"
)


def analyze(*argv: Path | str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *argv], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


@needs_systemd
def test_systemd_understands_every_line_of_the_units(tmp_path):
    unit = (SCRIPTS / "kvd.service").read_text()
    # It looks whether the command exists.
    (tmp_path / "kvd.service").write_text(unit.replace("/opt/kvd/bin/kvd", sys.executable))
    shutil.copy(SCRIPTS / "kvd.socket", tmp_path)
    ended = analyze("verify", tmp_path / "kvd.service", tmp_path / "kvd.socket")
    # What other units of this machine lack is said, too.
    assert [line for line in ended.stderr.splitlines() if "kvd" in line] == []


@needs_systemd
def test_systemd_finds_little_that_the_service_could_harm():
    ended = analyze("security", "--offline=true", "--threshold=20", SCRIPTS / "kvd.service")
    assert ended.returncode == 0, ended.stdout


def test_the_image_is_made_from_files_that_exist():
    copied = [line.split()[1:-1] for line in DOCKERFILE if re.match(r"COPY (?!--from)", line)]
    sources = [source for sources in copied for source in sources]
    assert "pyproject.toml" in sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_runs_as_a_user_of_its_own_over_a_volume():
    last = DOCKERFILE[max(n for n, line in enumerate(DOCKERFILE) if line.startswith("FROM")) :]
    assert "USER kvd" in last
    assert "VOLUME /var/lib/kvd" in last
    assert last.index("USER kvd") < last.index('ENTRYPOINT ["/opt/kvd/bin/kvd"]')


def health_check(server: Server) -> int:
    """Run the image's health check against a server; its exit status."""
    (line,) = [line for line in DOCKERFILE if line.startswith("HEALTHCHECK")]
    _, *argv = json.loads(line.partition("CMD ")[2])
    argv = [word.replace("http://127.0.0.1:2379", server.url) for word in argv]
    ended = subprocess.run(
        [sys.executable, *argv], capture_output=True, timeout=PATIENCE_S, check=False
    )
    return ended.returncode


def test_the_health_check_of_the_image_recognizes_a_server_that_serves(fresh_server):
    assert health_check(fresh_server) == 0
    fresh_server.kill()
    assert health_check(fresh_server) == 1
