"""`kvdctl help`: the manual that is installed with the program, where there is no server."""

import os
import subprocess
import sys

import pytest

from tests.support.server import ROOT

MANUAL = ROOT / "kvd" / "manual"


def kvdctl(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvd.ctl.main", *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


def test_help_lists_each_page_with_its_summary():
    ended = kvdctl("help")
    assert (ended.returncode, ended.stderr) == (0, "")
    listed = dict(line.split(None, 1) for line in ended.stdout.splitlines()[1:])
    titles = {page.stem: page.read_text().partition("\n")[0] for page in MANUAL.glob("*.md")}
    assert listed == {topic: title.partition(": ")[2] for topic, title in titles.items()}
    assert all(listed.values())


@pytest.mark.parametrize("topic", [page.stem for page in MANUAL.glob("*.md")])
def test_help_prints_a_page_whatever_the_encoding_of_the_terminal_is(topic):
    ended = kvdctl("help", topic, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == (MANUAL / f"{topic}.md").read_text()


def test_an_unknown_topic_is_refused_in_one_line():
    ended = kvdctl("help", "../README")
    assert (ended.returncode, ended.stdout) == (64, "")
    assert ended.stderr == "kvdctl: no topic '../README'; `kvdctl help` lists them\n"


def test_help_needs_no_home_and_no_writable_directory():
    ended = kvdctl("help", "limits", HOME="/nonexistent", TMPDIR="/nonexistent")
    assert (ended.returncode, ended.stderr) == (0, "")
