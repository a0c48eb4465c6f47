"""Docstrings of all that programs import: each has an example that runs and has strict types."""

import doctest
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import kvd
from kvd import recipes
from tests.support.documents import MANUAL
from tests.support.server import ROOT

HERE = "http://127.0.0.1:2379"
"""Of the server of the examples."""


def public() -> Iterator[tuple[str, object]]:
    """All that a program is to import, and the methods of the clients, each by one name."""
    for module in (kvd, kvd.client, recipes):
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, type) or inspect.isfunction(found):
                yield f"{module.__name__}.{name}", found
    for name, method in inspect.getmembers(kvd.Client, inspect.isfunction):
        if not name.startswith("_"):
            yield f"kvd.Client.{name}", method


PUBLIC = {name: found for found, name in {found: name for name, found in public()}.items()}
EXAMPLES = {
    name: doctest.DocTestParser().get_examples(inspect.getdoc(found) or "")
    for name, found in PUBLIC.items()
}


def members(found: object) -> Iterator[tuple[str, object]]:
    if isinstance(found, type):
        for name, member in vars(found).items():
            if not name.startswith("_") and (
                inspect.isfunction(member) or isinstance(member, property)
            ):
                yield name, member


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with kvd.Server(memory=True, wal_segment_bytes=1 << 20) as server:
        yield server.url


def test_all_public_names_are_found():
    modules = {name for name in kvd.__all__ if isinstance(getattr(kvd, name), ModuleType | str)}
    assert modules == {"__version__", "recipes"}
    for module in (kvd.client, recipes):
        found = {getattr(module, name) for name in module.__all__}
        # An alias for a type has no docstring.
        assert found - set(PUBLIC.values()) <= {kvd.client.Action}


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_says_what_it_is_and_has_an_example(name):
    assert EXAMPLES[name]
    assert [member for member, found in members(PUBLIC[name]) if not inspect.getdoc(found)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_each_example_shows_what_comes_of_it(url, name):
    with kvd.Client(url) as client:
        for node in client.ls("/"):
            client.delete(node.key, recursive=True)
        source = inspect.getdoc(PUBLIC[name]) or ""
        test = doctest.DocTestParser().get_doctest(
            source.replace(HERE, url), {"client": client, "Client": kvd.Client}, name, None, None
        )
        printed: list[str] = []
        ended = doctest.DocTestRunner().run(test, out=printed.append)
    assert ended.failed == 0, "".join(printed)


def blocks() -> Iterator[str]:
    """The code of the manual's sections on the client that is no command."""
    page, _, _ = (MANUAL / "python.md").read_text().partition("\n## From python-etcd\n")
    for block in page.split("\n\n"):
        if block.startswith("    ") and not block.startswith("    $ "):
            yield block


def test_the_examples_pass_strict_types(tmp_path):
    # What the manual's code leaves to its reader.
    lines = ["from typing import Any", "", "from kvd import Client", ""]
    lines += [
        "saved_index: int = 0",
        *(f"{it}: Any" for it in ("data", "store", "serve", "resize", "held")),
    ]
    for number, block in enumerate(blocks()):
        lines += [f"def block_{number}(client: Client) -> None:", block]
    for number, (name, examples) in enumerate(EXAMPLES.items()):
        lines += [f"def example_{number}(client: Client) -> None:  # {name}"]
        lines += [f"    {line}" for one in examples for line in one.source.splitlines()]
        lines += ["    return None", ""]
    file = tmp_path / "examples.py"
    file.write_text("\n".join(lines))
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", file],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout + ended.stderr == ""


def test_the_package_says_that_it_has_types():
    assert (ROOT / "kvd" / "py.typed").exists()
