"""The manual, the README and the other documents: what they show is what happens.

An example is an indented line that begins with `$`; what follows it, indented, is its output. The
examples of a document are run in their order, against a fresh server where it has one, in a
directory in which `data` is the server's. What differs from run to run is masked on both sides.
"""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvd.config.etcd_flags import IGNORED, REFUSED_FLAGS
from kvd.config.flags import FLAGS
from kvd.ctl.main import main as kvdctl
from kvd.storage import recovery
from kvd.v2.extras.parameters import capability
from tests.project.test_imports import MODULES
from tests.support.server import PATIENCE_S, ROOT, Server

MANUAL = ROOT / "kvd" / "manual"
PAGES = sorted(MANUAL.glob("*.md"))
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    and path.parent != ROOT / "kvd" / "storage"
)

# How the server of a page is started; no flags for the others.
FLAGS_OF = {"extras.md": ["--discovery"], "tls.md": ["--auto-tls"]}
LISTEN_OF = {"tls.md": "https://127.0.0.1:0"}

_VARYING = re.compile(
    r"\b[0-9a-f]{64}\b|\b[0-9a-f]{32}\b|\b[0-9a-f]{13,16}\b"  # digests, uuids, ids of stores
    r"|\d{4}-\d\d-\d\d[T ][0-9:.,]+Z?|\d{8}T\d{6}Z"  # times
    r"|\b\d+ bytes\b|\bin \d+\.\d+ s\b|process \d+ on \S+"
    r"|\bframe \d+|\bup to \d+"  # a second without writes adds an empty frame
)


def examples(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, and what they print."""
    found: list[tuple[str, list[str]]] = []
    is_output = False
    for line in page.read_text().splitlines():
        if line.startswith("    $ "):
            found.append((line[6:], []))
            is_output = True
        elif line and not line.startswith("    "):
            is_output = False
        elif is_output:
            found[-1][1].append(line[4:])
    return [(command, "\n".join(lines).strip()) for command, lines in found]


def masked(text: str) -> str:
    return _VARYING.sub("*", text).strip()


def run_examples(found: list[tuple[str, str]], server: Server, directory: Path) -> None:
    """Run commands as a reader of the document would, and compare what they print."""
    commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # curl shows its progress where its output is a pipe, as here; readers have a terminal.
    (directory / ".curlrc").write_text("silent\n")
    for command, output in found:
        ended = subprocess.run(
            ["bash", "-c", command.replace("127.0.0.1:2379", f"127.0.0.1:{server.port}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=directory,
            env={**os.environ, "PATH": commands, "CURL_HOME": str(directory)},
        )
        printed = ended.stdout.replace("\r", "").replace(f":{server.port}", ":2379")
        assert masked(printed) == masked(output), command


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)], ids=lambda p: p.stem)
def test_each_example_prints_what_the_page_says(make_server, tmp_path, page):
    server = make_server(
        *FLAGS_OF.get(page.name, []), listen=LISTEN_OF.get(page.name, "http://127.0.0.1:0")
    ).start()
    run_examples(examples(page), server, tmp_path)


def test_each_example_of_the_readme_prints_what_it_says(make_server, tmp_path):
    if not (ROOT / ".venv" / "bin" / "kvd").exists():
        pytest.skip("scripts/run would install kvd first")
    found = examples(ROOT / "README.md")
    command, output = found.pop(0)
    assert command == "scripts/run"
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    server = make_server(python="scripts/run", launch=(), data_dir=data).start()
    server.wait_for_log("listening on")
    printed = server.stderr.replace(str(data), "/srv/kvd/data").replace(f":{server.port}", ":2379")
    # A busy disk adds warnings.
    lines = iter(masked(printed).splitlines())
    assert [line for line in masked(output).splitlines() if line not in lines] == []
    run_examples(found, server, tmp_path)


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


def test_each_extra_is_named(client):
    page = (MANUAL / "extras.md").read_text()
    for name in client.request("GET", "/v2/extras").json["extras"]:
        assert f"`{name}" in page or f"/{name}" in page
    assert client.request("GET", "/v2/extras").json == capability()


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


def test_the_architecture_has_the_steps_of_recovery():
    page = (ROOT / "kvd" / "storage" / "README.md").read_text()
    _, _, section = page.partition("\n## Recovery\n")
    steps = re.findall(r"^(\d+)\. ", section.partition("\n## ")[0], re.M)
    assert steps == re.findall(r"^(\d+)\. ", recovery.__doc__ or "", re.M)
    assert len(steps) > 5


# What has an entry: a heading, or the first cell of a row, that begins with the name.


def entries(pattern: str) -> Counter[str]:
    """How often each name that matches has an entry in the manual."""
    found: Counter[str] = Counter()
    for page in PAGES:
        for line in page.read_text().splitlines():
            heading = re.match(r"#+ (`.*)", line)
            row = re.match(r"\| (`[^|]*)\|", line)
            for name in re.findall(r"`([^`]*)`", (heading or row or [""])[0]):
                if match := re.match(pattern, name):
                    found[match[1]] += 1
    return found


def once(names: Iterator[str] | set[str]) -> Counter[str]:
    return Counter(dict.fromkeys(names, 1))


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


def test_each_metric_has_one_entry(make_server):
    server = make_server("--snapshot-count", "1").start()
    client = server.client()
    client.put("/k", "v")
    server.wait_for_log("snapshot")  # its age is shown from then on
    text = client.request("GET", "/metrics").body.decode()
    shown = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    assert len(shown) > 50
    assert entries(r"((?:kvd|etcd|os|process|python)_\w+)$") == once(shown)


def test_each_check_has_one_entry(client):
    text = client.request("GET", "/readyz?verbose").body.decode()
    checks = set(re.findall(r"^\[\+\](\w+) ok", text, re.M))
    assert checks
    assert {name: entries(f"({name})$")[name] for name in checks} == dict.fromkeys(checks, 1)


def test_each_verb_has_one_entry(capsys):
    with pytest.raises(SystemExit):
        kvdctl(["--help"])
    verbs = set(re.findall(r"^    (\w+)", capsys.readouterr().out, re.M))
    assert {"verify", "help"} < verbs
    assert entries(r"kvdctl (\w+)") == once(verbs)


# Lines of the log.

LEVELS = ("debug", "info", "warning", "error", "exception", "critical")


def logged(levels: tuple[str, ...] = LEVELS) -> Iterator[str]:
    """The text of each call that logs one at one of these levels."""
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in levels
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("log", "audit")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                yield str(node.args[0].value)


def form_of(text: str) -> re.Pattern[str]:
    """What a text of the manual must match: what a `%s` stands for is in capitals there."""
    parts = re.split(r"%[-+.\d]*[a-z]", text)
    return re.compile(r"(?:[A-Z][A-Z ]*)?".join(map(re.escape, parts)))


def rows_of_the_log() -> list[str]:
    text = (MANUAL / "operations.md").read_text()
    _, _, section = text.partition("\n## Lines of the log\n")
    section = section.partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.M)


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
