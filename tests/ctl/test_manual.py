"""`kvdctl help`: the manual that is installed with the program, where there is no server."""

import os
import pty
import re
import subprocess
import sys

import pytest

from kvd.ctl.manual import wrapped
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


def words(text: str) -> list[str]:
    return re.findall(r"[^\s|]+", text)


@pytest.mark.parametrize("page", sorted(MANUAL.glob("*.md")), ids=lambda page: page.stem)
def test_a_page_fits_a_terminal_and_keeps_its_words(page):
    text = page.read_text()
    shown = wrapped(text, 80)
    assert {word for word in words(text) if not re.fullmatch("-+:?", word)} <= {
        part for word in words(shown) for part in (word, word.removesuffix(":"))
    }
    examples = re.findall(r"^    .*", text, re.M)
    assert [line for line in shown.splitlines() if line in examples] == examples
    # A word that is longer than a line, as a URL or a text in quotes, has a line of its own.
    long = [line for line in shown.splitlines() if len(line) > 80 and line not in examples]
    assert [line for line in long if not line.startswith("#") and len(words(line)) > 1] == []


def test_a_terminal_is_shown_lines_of_its_width():
    primary, secondary = pty.openpty()
    with os.fdopen(primary, "rb") as terminal:
        ended = subprocess.run(
            [sys.executable, "-m", "kvd.ctl.main", "help", "faq"],
            stdin=subprocess.DEVNULL,
            stdout=secondary,
            check=False,
            env={**os.environ, "COLUMNS": "60"},
        )
        os.close(secondary)
        shown = terminal.read(2000).decode()
    assert ended.returncode == 0
    lines = shown.replace("\r", "").splitlines()
    prose = [line for line in lines if not line.startswith(("    ", "#"))]
    assert 40 < max(map(len, prose)) <= 60
