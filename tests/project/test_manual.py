"""The examples of the manual: each is run, in its order, and says what the page says.

An example is an indented line that begins with `$`; what follows it, indented, is its output.
"""

import re
import subprocess
from pathlib import Path

import pytest

from kvd.v2.extras.parameters import capability
from tests.support.server import PATIENCE_S, ROOT

MANUAL = ROOT / "kvd" / "manual"
# What differs from run to run.
_VARYING = re.compile(r"[0-9a-f]{32}|\d{4}-\d\d-\d\dT[0-9:.]+Z")


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


@pytest.mark.parametrize(("name", "flags"), [("extras.md", ["--discovery"])])
def test_each_example_prints_what_the_page_says(make_server, name, flags):
    server = make_server(*flags).start()
    found = examples(MANUAL / name)
    assert len(found) > 10
    for command, output in found:
        assert "127.0.0.1:2379" in command
        finished = subprocess.run(
            ["bash", "-c", command.replace("127.0.0.1:2379", f"127.0.0.1:{server.port}")],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        printed = finished.stdout.replace("\r", "").replace(f":{server.port}", ":2379")
        assert masked(printed) == masked(output), command


def test_each_extra_is_named(client):
    page = (MANUAL / "extras.md").read_text()
    for name in client.request("GET", "/v2/extras").json["extras"]:
        assert f"`{name}" in page or f"/{name}" in page
    assert client.request("GET", "/v2/extras").json == capability()
