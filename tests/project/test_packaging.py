"""Wheel and sdist: what is in them, and that they run on a Python that has nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kvd
from tests.support.server import ROOT, Server

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


def in_the_sdist(name: str) -> str:
    """Where a file of the repository is in the sdist, which has no links."""
    return f"kvd/{name}" if name.startswith("storage/") else name


def test_the_sdist_is_the_repository(built):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    # Also what is about to be added.
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    # The build follows the link kvd/storage.
    names = {in_the_sdist(name) for name in listed.splitlines()} - {"kvd/storage"}
    assert sdist_names(built) == {*names, "PKG-INFO"}


def test_the_sdist_holds_what_the_readme_names(built):
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?<![\w/])((?:kvd|storage|tests|bench|scripts)/[\w./-]*[\w-])", text))
    names = sdist_names(built)
    held = names | {parent for name in names for parent in map(str, Path(name).parents)}
    assert {in_the_sdist(name) for name in named} - held == set()
    assert {"scripts/run", "tests/conformance", "bench/README.md"} <= named


def test_the_wheel_holds_one_package_and_nothing_else(built):
    with zipfile.ZipFile(the(built, "*.whl")) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {
        "kvd",
        f"kvd-{kvd.__version__}.dist-info",
    }
    assert {"kvd/storage/store.py", "kvd/py.typed"} <= set(names)


def test_the_wheel_holds_the_manual(built):
    with zipfile.ZipFile(the(built, "*.whl")) as archive:
        held = {name for name in archive.namelist() if name.startswith("kvd/manual/")}
    pages = {str(page.relative_to(ROOT)) for page in ROOT.glob("kvd/manual/*")}
    assert held == pages > set()


def test_the_wheel_holds_the_page(built):
    with zipfile.ZipFile(the(built, "*.whl")) as archive:
        held = {name for name in archive.namelist() if name.startswith("kvd/ui/")}
    files = {str(path.relative_to(ROOT)) for path in ROOT.glob("kvd/ui/**/*") if path.is_file()}
    assert held == files > set()


def test_the_installed_kvdctl_prints_the_manual(built, clean_python):
    kvdctl = clean_python(the(built, "*.whl")).parent / "kvdctl"
    assert run(kvdctl, "help", "operations") == (ROOT / "kvd/manual/operations.md").read_text()


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


def test_a_storage_of_another_program_is_not_in_the_way(built, clean_python, make_server, tmp_path):
    python = clean_python(the(built, "*.whl"))
    theirs = tmp_path / "theirs"
    (theirs / "storage").mkdir(parents=True)
    for name in ("storage.py", "storage/__init__.py"):
        (theirs / name).write_text("raise SystemExit('this is another program')\n")
    # Where the process is started comes first in what `-m` imports from.
    server = make_server("--snapshot-count", "20", python=python, cwd=theirs).start()
    client = server.client()
    for number in range(50):
        assert client.put(f"/{number}", "1").status == 201
    server.wait_for_log("wrote a snapshot of index")
    assert server.terminate() == 0
    for command in ((python, "-m", "kvd.ctl.main"), (python.parent / "kvdctl",)):
        assert "snap" in run(*command, "verify", server.data_dir, cwd=theirs)


def exercise(server: Server) -> None:
    client = server.client()
    answer = client.put("/a", "1")
    assert (answer.status, answer.headers["server"]) == (201, f"kvd/{kvd.__version__}")
    server.kill()
    server.start()
    assert server.client().get("/a").json["node"]["value"] == "1"


def test_the_installed_client_keeps_its_promises_under_kills(built, clean_python, tmp_path):
    python = clean_python(the(built, "*.whl"))
    # These import nothing but kvd; beside them is no kvd but the installed one.
    trials = tmp_path / "tests" / "client" / "trials"
    shutil.copytree(ROOT / "tests" / "client" / "trials", trials)
    for package in (trials.parent, trials.parent.parent):
        (package / "__init__.py").touch()
    for name in ("watch", "follow", "lock", "counter", "queue"):
        printed = run(python, "-m", "tests.client.trials", name, "--small", cwd=tmp_path)
        assert f"{name}: " in printed


def test_two_lines_are_a_test_with_the_installed_plugin(built, clean_python, tmp_path):
    python = clean_python(the(built, "*.whl"))
    run(python, "-m", "pip", "install", "--quiet", *tools())
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_it.py").write_text(
        "import sys\n"
        "def test_reads_its_port(kvd_server):\n"
        '    assert kvd_server.client.set("/app/port", "8080").node.value == "8080"\n'
        "    loader = sys.modules['kvd.server'].__loader__\n"
        "    assert type(loader).__name__ == 'SourceFileLoader'\n"
    )
    assert "1 passed" in run(python, "-m", "pytest", "-W", "error", tests, cwd=tests)


def test_the_sdist_runs_its_own_tests(built, tmp_path):
    with tarfile.open(the(built, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / f"kvd-{kvd.__version__}"
    printed = run(
        source / "scripts" / "test", "tests/v2/test_rules.py", "tests/server/test_start.py"
    )
    assert re.search(r"\d+ passed", printed)
    assert (source / ".venv" / "bin" / "kvd").exists()


# The lower bounds of the dependencies.

# What differs between versions of them: HTTP, formats, index, and each of the others.
ON_THE_LOWER_BOUNDS = [
    "project/test_dependencies",
    "http/connection/test_any_bytes",
    "http/connection/test_bodies",
    "http/connection/test_pipelining",
    "http/connection/test_routing",
    "http/connection/test_versions",
    "http/parsing/test_chunked",
    "http/parsing/test_headers",
    "http/parsing/test_header_cache",
    "http/test_fuzz",
    "v2/test_response",
    "golden/test_format",
    "storage/format/test_frame",
    "storage/format/test_records",
    "storage/format/test_document",
    "storage/format/test_event",
    "golden/test_golden",
    "storage/snapshot/test_directory",
    "storage/index/test_state",
    "storage/index/test_environment",
    "storage/index/test_index_damage",
    "storage/index/test_completeness",
    "monitoring/test_metrics",
    "handlers/passwords/test_passwords",
    "v2/documents/test_auth",
    "replicas/etcd/test_grpc",
    "replicas/test_engine_contract",
    "replicas/postgres/test_url",
    "config/test_load",
    "ctl/test_completion",
    "ctl/test_etcdctl",
    "ctl/test_settings",
    "net/test_tls",
    "server/test_start",
]


def metadata() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def lower_bounds() -> dict[str, str]:
    """The lowest version of each dependency, also of the extras', that pyproject.toml allows."""
    project = metadata()["project"]
    extras = project["optional-dependencies"].values()
    bounds = {}
    for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        (specifier,) = requirement.specifier
        assert specifier.operator == ">=", text
        bounds[canonicalize_name(requirement.name)] = specifier.version
    return bounds


def pins() -> list[str]:
    return [f"{name}=={version}" for name, version in lower_bounds().items()]


def tools() -> list[str]:
    """What the tests import and kvd does not."""
    group = metadata()["dependency-groups"]["test"]
    return [
        text for text in group if canonicalize_name(Requirement(text).name) not in lower_bounds()
    ]


def supported_pythons() -> list[str]:
    known = "Programming Language :: Python :: "
    found = metadata()["project"]["classifiers"]
    return [text.removeprefix(known) for text in found if text.startswith(known)]


@pytest.mark.parametrize("version", supported_pythons())
def test_the_lower_bounds_have_wheels_for_each_python(tmp_path, version):
    report = tmp_path / "report.json"
    where = ("--python-version", version, "--target", tmp_path / "none", "--report", report)
    only = ("--only-binary", ":all:", "--no-deps", "--ignore-installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", *only, *where, *pins())
    wheels = [found["download_info"]["url"] for found in json.loads(report.read_text())["install"]]
    assert len(wheels) == len(pins())
    # One that fits every machine is the slow stand-in for what is compiled elsewhere.
    pure = [wheel.rpartition("/")[2] for wheel in wheels if wheel.endswith("-none-any.whl")]
    assert {name.partition("-")[0] for name in pure} == {"click", "h2", "prometheus_client"}


@pytest.mark.timeout(3600)
def test_it_passes_its_tests_on_the_lower_bounds(built, clean_python, make_server, tmp_path):
    python = clean_python(the(built, "*.whl"))
    wheel = f"{the(built, '*.whl')}[{','.join(metadata()['project']['optional-dependencies'])}]"
    run(python, "-m", "pip", "install", "--quiet", wheel, *pins(), *tools())
    installed = json.loads(run(python, "-m", "pip", "list", "--format", "json"))
    versions = {canonicalize_name(found["name"]): found["version"] for found in installed}
    assert lower_bounds().items() <= versions.items()

    server = make_server(python=python, launch=("-I", "-m", "kvd")).start()
    exercise(server)
    assert server.terminate() == 0

    options = ("-q", "-p", "no:cacheprovider", "--numprocesses", "auto", "--dist", "worksteal")
    files = [f"tests/{name}.py" for name in ON_THE_LOWER_BOUNDS]
    printed = run(python, "-m", "pytest", *options, "--basetemp", tmp_path / "t", *files, cwd=ROOT)
    assert re.search(r"\d+ passed", printed)
