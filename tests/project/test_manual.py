"""The examples of the manual and the README: each is run, and prints what the document says.

The examples of a document are run in their order, against a fresh server, in a directory in which
`data` is the server's. What differs from run to run is masked on both sides.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kvd.v2.extras.parameters import capability
from tests.support.documents import MANUAL, PAGES, entries, examples, once
from tests.support.server import PATIENCE_S, ROOT, Server

# How the server of a page is started; no flags for the others.
FLAGS_OF = {"extras.md": ["--discovery"], "tls.md": ["--auto-tls"]}
LISTEN_OF = {"tls.md": "https://127.0.0.1:0"}

_VARYING = re.compile(
    r"\b[0-9a-f]{64}\b|\b[0-9a-f]{32}\b|\b[0-9a-f]{13,16}\b"  # digests, uuids, ids of stores
    r"|\d{4}-\d\d-\d\d[T ][0-9:.,]+Z?|\d{8}T\d{6}Z"  # times
    r"|\b\d+ bytes\b|\bin \d+\.\d+ s\b|process \d+ on \S+"
    r"|\betcd 3\.\d+\.\d+"
    r"|\bframe \d+|\bup to \d+"  # a second without writes adds an empty frame
)


def masked(text: str) -> str:
    return _VARYING.sub("*", text).strip()


def run_examples(found: list[tuple[str, str]], server: Server, directory: Path) -> None:
    """Run commands as a reader of the document would, and compare what they print."""
    commands = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # curl shows its progress where its output is a pipe, as here; readers have a terminal.
    (directory / ".curlrc").write_text("silent\n")
    at = {"KVDCTL_ENDPOINTS": server.url, "XDG_CONFIG_HOME": str(directory)}
    for command, output in found:
        ended = subprocess.run(
            ["bash", "-c", command.replace("127.0.0.1:2379", f"127.0.0.1:{server.port}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            cwd=directory,
            env={**os.environ, "PATH": commands, **at, "CURL_HOME": str(directory)},
        )
        printed = ended.stdout.replace("\r", "").replace(f":{server.port}", ":2379")
        assert masked(printed) == masked(output), command


# That of migrate.md needs an etcd: tests/migrate/test_manual_page.py.
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if examples(page) and page.stem != "migrate"],
    ids=lambda p: p.stem,
)
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


def test_each_extra_is_named(client):
    page = (MANUAL / "extras.md").read_text()
    for name in client.request("GET", "/v2/extras").json["extras"]:
        assert f"`{name}" in page or f"/{name}" in page
    assert client.request("GET", "/v2/extras").json == capability()


# What a server shows has an entry.


def test_each_metric_has_one_entry(make_server):
    server = make_server("--snapshot-count", "1").start()
    client = server.client()
    client.put("/k", "v")
    server.wait_for_log("snapshot")  # its age is shown from then on
    text = client.request("GET", "/metrics").body.decode()
    shown = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    assert len(shown) > 50
    # Those of replicas: tests/monitoring/test_replica_health.py.
    names = r"((?:kvd_(?!replica_|engine_)|etcd_|os_|process_|python_)\w+)$"
    assert entries(names) == once(shown)


def test_each_check_has_one_entry(client):
    text = client.request("GET", "/readyz?verbose").body.decode()
    checks = set(re.findall(r"^\[\+\](\w+) ok", text, re.M))
    assert checks
    assert {name: entries(f"({name})$")[name] for name in checks} == dict.fromkeys(checks, 1)
