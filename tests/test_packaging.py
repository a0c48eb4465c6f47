"""Wheel and sdist: what is in them, and that they run on a Python that has nothing else."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email.parser import HeaderParser
from pathlib import Path

import pytest

import kvd
from tests.server import ROOT, Server

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was made from it."""
    directory = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", directory, ROOT)
    return directory


@pytest.fixture
def clean_python(tmp_path: Path) -> Callable[[Path], Path]:
    """Installs a file into an environment of its own; its Python."""

    def install(file: Path) -> Path:
        run(sys.executable, "-m", "venv", tmp_path / "venv")
        python = tmp_path / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", file)
        return python

    return install


def run(*command: Path | str, cwd: Path | None = None) -> str:
    """Run a command that must succeed; what it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def the(built: Path, kind: str) -> Path:
    (file,) = built.glob(kind)
    return file


def sdist_names(built: Path) -> set[str]:
    with tarfile.open(the(built, "*.tar.gz")) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_the_sdist_is_the_repository(built):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    # Also what is about to be added.
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    assert sdist_names(built) == {*listed.splitlines(), "PKG-INFO"}


def test_the_sdist_holds_what_the_readme_names(built):
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?<![\w/])((?:kvd|storage|tests|bench|scripts)/[\w./-]*[\w-])", text))
    names = sdist_names(built)
    held = names | {parent for name in names for parent in map(str, Path(name).parents)}
    assert named - held == set()
    assert {"scripts/run", "tests/conformance", "bench/README.md"} <= named


def test_the_wheel_holds_the_two_packages_and_nothing_else(built):
    with zipfile.ZipFile(the(built, "*.whl")) as archive:
        rooms = {name.partition("/")[0] for name in archive.namelist()}
    assert rooms == {"kvd", "storage", f"kvd-{kvd.__version__}.dist-info"}


def test_the_wheel_holds_the_manual(built):
    with zipfile.ZipFile(the(built, "*.whl")) as archive:
        held = {name for name in archive.namelist() if name.startswith("kvd/manual/")}
    pages = {str(page.relative_to(ROOT)) for page in ROOT.glob("kvd/manual/*")}
    assert held == pages > set()


def test_the_version_is_the_same_everywhere(built):
    with zipfile.ZipFile(the(built, "*.whl")) as archive:
        metadata = archive.read(f"kvd-{kvd.__version__}.dist-info/METADATA").decode()
    assert HeaderParser().parsestr(metadata)["Version"] == kvd.__version__
    assert the(built, "*.tar.gz").name == f"kvd-{kvd.__version__}.tar.gz"


@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_runs_on_a_clean_python(built, clean_python, make_server, kind):
    python = clean_python(the(built, kind))
    commands = python.parent
    assert run(commands / "kvd", "--version").split() == ["kvd", kvd.__version__]
    # -I: nothing is imported from the directory that the process is started in.
    server = make_server(python=python, launch=("-I", "-m", "kvd")).start()
    assert Path(f"/proc/{server.pid}/cmdline").read_text().startswith(str(python))
    exercise(server)
    assert server.terminate() == 0
    run(commands / "kvdctl", "verify", server.data_dir)


def exercise(server: Server) -> None:
    client = server.client()
    answer = client.put("/a", "1")
    assert (answer.status, answer.headers["server"]) == (201, f"kvd/{kvd.__version__}")
    server.kill()
    server.start()
    assert server.client().get("/a").json["node"]["value"] == "1"


def test_the_sdist_runs_its_own_tests(built, tmp_path):
    with tarfile.open(the(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"kvd-{kvd.__version__}"
    printed = run(source / "scripts" / "test", "tests/test_machine.py", "tests/test_start.py")
    assert re.search(r"\d+ passed", printed)
    assert (source / ".venv" / "bin" / "kvd").exists()
