"""Sizes: a function has at most 40 lines, a file 360, and none over 300 without a reason here."""

import ast
from collections.abc import Iterator

from tests.support.server import ROOT

FUNCTION_LINES_MAX = 40
FILE_LINES_MAX, FILE_LINES = 360, 300

LONG_FUNCTIONS = {
    "kvd/config/load.py:_config": "one line for each setting",
    "kvd/core/batch/decider.py:Decider.decide": "hot: a call for each command would cost 2 %",
    "kvd/core/committer.py:Committer.__init__": "one line for each part that it connects",
    "kvd/handlers/keys/outcomes.py:Telling._rendering": "hot: its variables are bound once",
    "kvd/handlers/keys/outcomes.py:Telling._rendering.render": "hot: one loop over the batch",
    "kvd/handlers/keys/outcomes.py:Telling._telling": "hot: its variables are bound once",
    "kvd/handlers/keys/short_way.py:ShortWay._serving": "hot: its variables are bound once",
    "kvd/migrate/etcd/directory.py:read": "the steps of an import, in their order",
}
A_LIFE = "one class with a life, and what only it needs"
FORMAT = "one format, read and written"
VERY_LONG_FILES = {
    "kvd/client/blocking.py": "one method for each request, with all that its user needs to know",
}
LONG_FILES = VERY_LONG_FILES | {
    "bench/load/workloads.py": "one table of workloads",
    "kvd/client/operations.py": "one function for each request of the API",
    "kvd/config/flags.py": "one table of flags",
    "kvd/config/load.py": "one field of the configuration each",
    "kvd/core/committer.py": A_LIFE,
    "kvd/embedded.py": A_LIFE,
    "kvd/handlers/authorizer.py": A_LIFE,
    "kvd/handlers/extras/reading/reads.py": A_LIFE,
    "kvd/handlers/keys/large_listings.py": A_LIFE,
    "kvd/handlers/passwords.py": A_LIFE,
    "kvd/http/connection.py": A_LIFE,
    "kvd/http/request_loop.py": A_LIFE,
    "kvd/http/sending/response_writer.py": A_LIFE,
    "kvd/migrate/etcd/store.py": "the rules of etcd's own store",
    "kvd/net/tls_connection.py": A_LIFE,
    "kvd/server.py": A_LIFE,
    "kvd/v2/extras/txn.py": FORMAT,
    "kvd/wiring.py": "every part, made and connected in one place",
    "storage/directory/data_directory.py": A_LIFE,
    "storage/disk.py": "all system calls on files",
    "storage/format/records.py": FORMAT,
    "storage/index/environment.py": A_LIFE,
    "storage/index/integrity/completeness.py": A_LIFE,
    "storage/index/pending.py": A_LIFE,
    "storage/index/state.py": A_LIFE,
    "storage/snapshot/file.py": FORMAT,
    "storage/store.py": A_LIFE,
    "storage/tools/repair.py": "one verb, from judgement to report",
    "storage/wal/segment_writer.py": A_LIFE,
    "storage/wal/segments.py": FORMAT,
    "storage/wal/wal.py": A_LIFE,
}

SOURCES = {
    str(path.relative_to(ROOT)): path.read_text()
    for room in ("kvd", "storage", "bench", "scripts")
    for path in sorted((ROOT / room).rglob("*.py"))
    if "storage" not in path.relative_to(ROOT).parts[1:2]
}


def functions(node: ast.AST, name: str = "") -> Iterator[tuple[str, int]]:
    """The qualified names of all functions below a node, each with its number of lines."""
    for child in ast.iter_child_nodes(node):
        inner = name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{name}.{child.name}".lstrip(".")
            if not isinstance(child, ast.ClassDef):
                yield inner, (child.end_lineno or child.lineno) - child.lineno + 1
        yield from functions(child, inner)


def test_a_function_has_at_most_40_lines_or_a_reason():
    long = {
        f"{path}:{name}": lines
        for path, source in SOURCES.items()
        for name, lines in functions(ast.parse(source))
        if lines > FUNCTION_LINES_MAX
    }
    assert {place: lines for place, lines in long.items() if place not in LONG_FUNCTIONS} == {}
    assert LONG_FUNCTIONS.keys() - long.keys() == set(), "reasons of functions that are short now"


def test_a_file_has_at_most_360_lines_and_over_300_a_reason():
    sizes = {path: source.count("\n") for path, source in SOURCES.items()}
    assert {
        path: size
        for path, size in sizes.items()
        if size > FILE_LINES_MAX and path not in VERY_LONG_FILES
    } == {}
    long = {path: size for path, size in sizes.items() if size > FILE_LINES}
    assert {path: size for path, size in long.items() if path not in LONG_FILES} == {}
