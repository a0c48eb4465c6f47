"""The documents against the code, without a server: terms, paths, entries, lines of the log.

What they show of a running server is in test_manual.py.
"""

import ast
import re
from functools import cache
from pathlib import Path

import click
import pytest

from kvd.config.etcd_flags import IGNORED, REFUSED_FLAGS
from kvd.config.flags import FLAGS
from kvd.ctl.main import ROOT as ROOT_COMMAND
from kvd.ctl.table import VERBS
from kvd.storage import recovery
from tests.project.test_imports import MODULES
from tests.support.documents import DOCUMENTS, MANUAL, PAGES, entries, examples, once
from tests.support.log_texts import rows_of_the_log
from tests.support.server import ROOT


def test_examples_are_only_where_they_are_run():
    run = {*PAGES, ROOT / "README.md"}
    assert [path for path in DOCUMENTS if examples(path) and path not in run] == []


def test_the_pages_are_plain_ascii():
    """A terminal shows them, whatever its encoding is."""
    assert [page.name for page in PAGES if not page.read_text().isascii()] == []


_DIALECT = re.compile(
    r"\b(whoever|nobody|somebody|anew|by (?:itself|themselves)|(?:is|are|be|been|was|were) told)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_documents_are_in_standard_terms(page):
    """STYLE: the subject is named; texts in backticks and examples are quotations."""
    lines = [line for line in page.read_text().splitlines() if not line.startswith("    ")]
    prose = [re.sub(r"`[^`]*`", "", line) for line in lines]
    assert [line for line in prose if _DIALECT.search(line)] == []


_COLUMNS = 120
# A heading of the manual is the usage of a verb.


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_is_wrapped(page):
    """Rows of tables, headings, examples and verbatim lines are as long as they are."""
    lines = [line for line in page.read_text().splitlines() if line[:1] not in ("|", "#")]
    prose = [line for line in lines if not line.startswith("    ")]
    assert [line for line in prose if len(line) > _COLUMNS] == []


# Paths.

_PATH = re.compile(
    r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|json|service|socket)|(?:[\w.-]+/)+)`"
    r"|(?<![\w/.`-])((?:kvd|storage|tests|bench|scripts)/[\w./-]*\w)"
    r"|\]\((?!https?:)([^)#]+)\)"  # a link
)
# What is on a user's disk, not in the repository.
_ELSEWHERE = {
    "quarantine/",
    "index/",
    "tls/",
    "etcd.conf.yml",
    "wal/",
    "root/",
    "build/versus-etcd/",
    "build/versus-etcd/table.md",
    "table.md",
    "rounds.json",
}


def paths(page: Path) -> list[str]:
    """The files and folders of the repository that a document names, by their place from it."""
    found = ("".join(groups) for groups in _PATH.findall(page.read_text()))
    return [path for path in found if path not in _ELSEWHERE and ".." not in path[2:]]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_path_that_a_document_names_is_there(page):
    missing = [
        path
        for path in paths(page)
        if not any((place / path).exists() for place in (page.parent, ROOT, ROOT / "kvd"))
    ]
    assert "\n".join(missing) == ""


def test_the_architecture_names_files():
    assert min(len(paths(ROOT / name / "README.md")) for name in ("kvd", "kvd/storage")) > 25


def test_the_readme_names_each_page_of_the_manual():
    (row,) = re.findall(r"^\| \[kvd/manual/\].*", (ROOT / "README.md").read_text(), re.M)
    assert set(row.rpartition(": ")[2].strip(" |").split(", ")) == {page.stem for page in PAGES}


@pytest.mark.parametrize("package", ["kvd", "kvd/storage"])
def test_the_architecture_names_each_folder(package):
    page = (ROOT / package / "README.md").read_text()
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")} - {"storage"}
    assert {name for name in folders if f"| `{name}/` |" not in page} == set()


def test_the_architecture_has_the_steps_of_recovery():
    page = (ROOT / "kvd" / "storage" / "README.md").read_text()
    _, _, section = page.partition("\n## Recovery\n")
    steps = re.findall(r"^(\d+)\. ", section.partition("\n## ")[0], re.M)
    assert steps == re.findall(r"^(\d+)\. ", recovery.__doc__ or "", re.M)
    assert len(steps) > 5


# Entries.


def test_each_flag_has_one_entry():
    flags = {flag.name for flag in (*FLAGS, *IGNORED, *REFUSED_FLAGS)}
    assert entries(r"--([a-z0-9-]+)(?: [A-Z]\S*)?$") == once(flags)


def test_each_default_is_that_of_the_flag():
    """Numbers and words alike; what depends on another setting is said in words."""
    rows = {
        match[1]: match[2]
        for line in (MANUAL / "settings.md").read_text().splitlines()
        if (match := re.match(r"\| `--([a-z0-9-]+)[^|]*\| ([^|]*) \|", line))
    }
    units = {"KiB": 1 << 10, "MiB": 1 << 20}
    for flag in FLAGS:
        if not (flag.value and flag.default):
            continue
        shown = rows[flag.name].replace(",", "")
        if size := re.fullmatch(r"(\d+) ([KM]iB)", shown):
            shown = str(int(size[1]) * units[size[2]])
        assert (
            re.split(r"[ :(]", shown.replace("://", "//"))[0]
            == re.split(r"[ :(]", flag.default.replace("://", "//"))[0]
        ), flag.name


def test_each_verb_of_kvdctl_has_one_entry():
    assert entries(r"kvdctl (\w[\w-]*)") == once(VERBS)


def flags_of(command: click.Command) -> set[str]:
    """The names of the flags of a verb, each by its longest."""
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    return {max(one.opts, key=len) for one in options}


def shown_flags(usage: str) -> list[str]:
    return re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", usage)


@pytest.mark.parametrize("name", [name for name, entry in VERBS.items() if entry.place])
def test_each_flag_of_a_verb_is_in_its_heading_once(name):
    command = ROOT_COMMAND.get_command(click.Context(ROOT_COMMAND), name)
    page = "\n".join(one.read_text() for one in PAGES)
    if isinstance(command, click.Group):
        verbs = command.commands
        rows = {verb: re.findall(rf"^\| `{name} {verb}\b([^`]*)`", page, re.M) for verb in verbs}
    else:
        verbs = {name: command}
        rows = {name: re.findall(rf"^## `kvdctl {name}(?![\w-])([^`]*)`", page, re.M)}
    for verb, found in rows.items():
        assert len(found) == 1, verb
        assert sorted(shown_flags(found[0].partition(" -- ")[0])) == sorted(flags_of(verbs[verb]))


def test_each_setting_of_kvdctl_has_one_entry():
    assert entries(r"kvdctl (--[\w-]+)") == once(flags_of(ROOT_COMMAND) - {"--version"})


# Lines of the log.

LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


@cache
def logged(levels: tuple[str, ...] = LEVELS) -> list[str]:
    """The text of each call that logs one at one of these levels."""
    return [text for level, text in _logged() if level in levels]


@cache
def _logged() -> list[tuple[str, str]]:
    found = []
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("log", "audit")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.append((node.func.attr, str(node.args[0].value)))
    return found


def form_of(text: str) -> re.Pattern[str]:
    """What a text of the manual must match: what a `%s` stands for is in capitals there."""
    parts = re.split(r"%[-+.\d]*[a-z]", text)
    return re.compile(r"(?:[A-Z][A-Z ]*)?".join(map(re.escape, parts)))


def test_each_line_of_the_log_in_the_manual_is_one_that_kvd_logs():
    forms = [form_of(text) for text in logged()]
    rows = rows_of_the_log()
    assert len(rows) > 20
    assert [row for row in rows if not any(form.fullmatch(row) for form in forms)] == []


def test_each_warning_and_error_has_a_row():
    rows = rows_of_the_log()
    texts = [text for text in logged(LEVELS[2:]) if re.search(r"[a-z]{2}", text)]
    assert len(texts) > 40
    assert [text for text in texts if not any(form_of(text).fullmatch(row) for row in rows)] == []
