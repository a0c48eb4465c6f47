"""Sizes: a function has at most 40 lines without its docstring, a file 360, or a reason here."""

import ast
from collections.abc import Iterator

from tests.support.server import ROOT

FUNCTION_LINES_MAX = 40
FILE_LINES_MAX = 360

LONG_FUNCTIONS = {
    "kvd/config/load.py:_config": "one line for each setting",
    "kvd/core/batch/decider.py:Decider.decide": "hot: each call more is a part of every command",
    "kvd/core/batch/flow.py:Flow.__init__": "one line for each part that it connects",
    "kvd/core/committer.py:Committer.__init__": "one line for each part that it connects",
    "kvd/handlers/keys/outcomes.py:WriteResponses._rendering": "hot: its variables are bound once",
    "kvd/handlers/keys/outcomes.py:WriteResponses._rendering.render": "hot: a loop over the batch",
    "kvd/handlers/keys/outcomes.py:WriteResponses._responding": "hot: its variables are bound once",
    "kvd/handlers/keys/short_way.py:ShortWay._serving": "hot: its variables are bound once",
    "kvd/migrate/etcd/directory.py:read": "the steps of an import, in their order",
}
LONG_FILES: dict[str, str] = {}

SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for room in ("kvd", "storage", "bench", "scripts")
    for path in sorted((ROOT / room).rglob("*.py"))
    if "storage" not in path.relative_to(ROOT).parts[1:2]
}


def size(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The number of its lines, without those of its docstring."""
    first = node.body[0]
    is_doc = ast.get_docstring(node, clean=False) is not None
    doc = (first.end_lineno or 0) - first.lineno + 1 if is_doc else 0
    return (node.end_lineno or 0) - node.lineno + 1 - doc


def functions(node: ast.AST, name: str = "") -> Iterator[tuple[str, int]]:
    """The qualified names of all functions below a node, each with its size."""
    for child in ast.iter_child_nodes(node):
        inner = name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield inner, size(child)
        yield from functions(child, inner)


def test_a_function_has_at_most_40_lines_or_a_reason():
    long = {
        f"{path}:{name}": lines
        for path, source in SOURCES.items()
        for name, lines in functions(ast.parse(source))
        if lines > FUNCTION_LINES_MAX
    }
    assert {place: lines for place, lines in long.items() if place not in LONG_FUNCTIONS} == {}


def test_a_file_has_at_most_360_lines_or_a_reason():
    sizes = {path: source.count("\n") for path, source in SOURCES.items()}
    long = {path: lines for path, lines in sizes.items() if lines > FILE_LINES_MAX}
    assert {path: lines for path, lines in long.items() if path not in LONG_FILES} == {}
