"""kvd/testing/plugin.py: fixtures in a project of their own, and what they cost all others."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

from tests.support.server import ROOT

# Whether the plugin is installed in the environment of these tests makes no difference to them.
PLUGIN = ("-p", "kvd.testing.plugin", "-p", "no:cacheprovider")


@pytest.fixture
def run(tmp_path):
    """Returns how to run pytest in an empty project, with a test file and options."""

    def run(code: str, *options: str):
        (tmp_path / "test_it.py").write_text(code)
        environment = os.environ | {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return subprocess.run(
            [sys.executable, "-m", "pytest", *PLUGIN, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_two_lines_are_a_test_with_a_server(run):
    ended = run(
        "def test_reads_its_port(kvd_server):\n"
        '    assert kvd_server.client.set("/app/port", "8080").node.value == "8080"\n',
        "-W",
        "error",
    )
    assert ended.returncode == 0, ended.stdout


TESTS = """
import pytest
from kvd.client import OutcomeUnknown

def test_that_fails(kvd_server, kvd_process):
    kvd_server.fill_disk()
    kvd_process.client.set("/a", "1")
    kvd_process.restart(clean=False)
    raise AssertionError

def test_without_a_server():
    raise AssertionError

def test_that_harms(kvd_server_factory):
    server = kvd_server_factory()
    server.fail_next_fsync()
    with pytest.raises(OutcomeUnknown):
        server.client.set("/a", "1")
    server.expects_failure = False

def test_that_asks_for_it(kvd_server_factory):
    server = kvd_server_factory()
    server.fail_next_fsync()
    with pytest.raises(OutcomeUnknown):
        server.client.set("/a", "1")

def test_of_a_session(kvd_server_session):
    kvd_server_session.client.set("/a", "1")

def test_of_the_same_session(kvd_server_session):
    assert kvd_server_session.dump() == {"/a": "1"}
    assert not any("listening" in line for line in kvd_server_session.log)
    kvd_server_session.reset()
    assert kvd_server_session.dump() == {}
"""


def test_what_kvd_logged_is_shown_with_a_test_that_fails(run):
    ended = run(TESTS)
    reports = re.split(r"^_+ (.+) _+$", ended.stdout, flags=re.MULTILINE)
    shown = {
        name: re.findall(r"kvd log of .*?(?=^-|\Z)", text, re.MULTILINE | re.DOTALL)
        for name, text in zip(reports[1::2], reports[2::2], strict=True)
    }
    guest, child = shown["test_that_fails"]
    assert "writes are refused until there is room" in guest
    assert "recovered index 2 from" in child
    assert shown["test_without_a_server"] == []
    (harmed,) = shown["ERROR at teardown of test_that_harms"]
    assert "the disk failed, stopping at once" in harmed
    assert shown.keys() == {
        "test_that_fails",
        "test_without_a_server",
        "ERROR at teardown of test_that_harms",
    }
    assert "2 failed, 4 passed, 1 error in" in ended.stdout


def test_flags_of_the_project_are_those_of_each_server(run, tmp_path):
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nkvd_flags = --max-key-depth 2 --event-history-limit=100\n"
    )
    ended = run(
        "import pytest\n"
        "from kvd.client import ApiError\n"
        "def test_it(kvd_server, kvd_server_factory):\n"
        "    with pytest.raises(ApiError):\n"
        '        kvd_server.client.set("/a/b/c", "")\n'
        '    kvd_server_factory(max_key_depth=3).client.set("/a/b/c", "")\n'
    )
    assert ended.returncode == 0, ended.stdout


def test_workers_share_nothing(run):
    each = "def test_{0}(kvd_server_session):\n    assert kvd_server_session.index == 1\n"
    ended = run("".join(each.format(n) for n in range(4)), "-p", "xdist", "-n", "2")
    assert ended.returncode == 0, ended.stdout


def test_runs_without_a_server_load_none(run):
    ended = run(
        "import sys\n"
        "def test_it():\n"
        "    loaded = {name for name in sys.modules if name.startswith('kvd')}\n"
        "    assert loaded == {'kvd', 'kvd.testing', 'kvd.testing.plugin'}\n"
    )
    assert ended.returncode == 0, ended.stdout


def test_the_plugin_loads_nothing_that_pytest_does_not():
    """Without a server it costs a run its own file, and the hooks that must be there."""
    code = (
        "import sys, pytest\n"
        "before = {*sys.modules}\n"
        "import kvd.testing.plugin as plugin\n"
        "print(*sorted({*sys.modules} - before))\n"
        "print(*sorted(name for name in vars(plugin) if name.startswith('pytest_')))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules, hooks = ended.stdout.splitlines()
    assert modules == "kvd kvd.testing kvd.testing.plugin"
    assert hooks == "pytest_addoption pytest_load_initial_conftests"


def test_the_asserts_of_kvd_are_not_rewritten(run, tmp_path):
    # As pytest marks the package where it is installed as a whole, and has imported its plugin.
    (tmp_path / "conftest.py").write_text(
        "import warnings, pytest\n"
        "with warnings.catch_warnings():\n"
        '    warnings.simplefilter("ignore")\n'
        '    pytest.register_assert_rewrite("kvd")\n'
        "import kvd.client\n"
    )
    ended = run(
        "import sys\n"
        "def test_it(kvd_server):\n"
        "    kvd_server.client.get('/')\n"
        "    kvd = {n: str(m.__loader__) for n, m in sys.modules.items() if n.startswith('kvd.')}\n"
        "    rewritten = {name for name, loader in kvd.items() if 'Rewriting' in loader}\n"
        "    assert 'kvd.server' in kvd and rewritten <= {'kvd.testing.plugin'}\n"
        "    assert any(type(one).__module__ == 'kvd.testing.plugin' for one in sys.meta_path)\n"
    )
    assert ended.returncode == 0, ended.stdout


def test_pytest_finds_the_plugin():
    declared = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points.pytest11]\nkvd = "kvd.testing.plugin"\n' in declared


def test_the_example_of_the_manual_is_a_test_that_passes(run):
    page = (ROOT / "kvd" / "manual" / "python.md").read_text()
    _, _, section = page.partition("\n## Tests\n")
    block = re.search(r"(?:^(?:    .*)?\n)+", section.partition("This file is a test:\n")[2], re.M)
    ended = run(textwrap.dedent(block[0]), "-W", "error")
    assert ended.returncode == 0, ended.stdout
    assert "5 passed" in ended.stdout


def test_the_study_of_the_manual_is_a_test_that_passes(run):
    page = (ROOT / "kvd" / "manual" / "python.md").read_text()
    _, _, section = page.partition("\n## Experiments with crashes\n")
    block = re.search(r"(?:^(?:    .*)?\n)+", section.partition("`pytest -s`:\n")[2], re.M)
    flags = "kvd_flags=--event-history-limit=100000"
    ended = run(textwrap.dedent(block[0]), "-W", "error", "-s", "-o", flags)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"\d+ acknowledged writes, 0 lost; \d+ without a response,", ended.stdout)
