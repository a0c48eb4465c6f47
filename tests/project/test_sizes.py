"""Sizes: a function has at most 40 lines without its docstring, a file 300, or a reason here.

No reason is good enough for a file of more than 360 lines.
"""

import ast
from collections.abc import Iterator

from tests.support.server import ROOT

FUNCTION_LINES_MAX = 40
FILE_LINES_MAX = 300
REASONED_LINES_MAX = 360

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
LONG_FILES = {
    "bench/test_layers.py": "one layer after the other, in the order of a request",
    "kvd/client/errors.py": "a class for each error, with its example",
    "kvd/client/exchanges.py": "requests, and what their responses mean; its folder is full",
    "kvd/client/model.py": "the values that a program gets, with their examples",
    "kvd/client/operations.py": "a method for each request",
    "kvd/config/flags.py": "one table: a row for each flag",
    "kvd/core/background/housekeeping.py": "one thread, and the jobs that it takes in turns",
    "kvd/core/committer.py": "one class: the order of a write",
    "kvd/embedded.py": "one class, documented for programs",
    "kvd/handlers/authorizer.py": "one class, and the values that it judges by",
    "kvd/handlers/extras/reading/reads.py": "two classes that know each other",
    "kvd/handlers/keys/large_listings.py": "one queue, and the jobs in it; its folder is full",
    "kvd/handlers/keys/outcomes.py": "one class: a split costs calls per response",
    "kvd/handlers/passwords.py": "one queue of checks, and what it reads; its folder is full",
    "kvd/http/connection.py": "one life of a connection, with the calls of asyncio",
    "kvd/http/request_loop.py": "one life of a connection: a split costs calls per request",
    "kvd/http/sending/response_writer.py": "one class: a split costs calls per response",
    "kvd/migrate/importing.py": "the steps of an import, in their order",
    "kvd/net/tls_connection.py": "one life of a connection, with the calls of asyncio",
    "kvd/replicas/replica.py": "one class: a place in the log, and how it changes",
    "kvd/replicas/etcd/client.py": "attempts of a call, and what their errors mean",
    "kvd/replicas/etcd/log.py": "one interface, and the fence of an append",
    "kvd/replicas/etcd/grpc.py": "one life of a connection, with the calls of asyncio",
    "kvd/replicas/replication.py": "one map of the parts of a replica",
    "kvd/server.py": "one life of a server: start, reload, failure, stop",
    "kvd/v2/extras/txn.py": "one table of fields, and its reader",
    "storage/disk.py": "one place for all calls that touch files",
    "storage/index/environment.py": "one class: a file of LMDB and its life",
    "storage/index/pending.py": "one class: a split costs calls per change",
    "storage/index/state.py": "one class: a split costs calls per read",
    "storage/store.py": "one class: all of the storage as one thing",
    "storage/wal/segment_writer.py": "one class: a split costs calls per frame",
    "storage/wal/segments.py": "one reading of the log, by the rules for its end",
    "storage/wal/wal.py": "one class: the log and its segments",
}

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


def test_a_file_has_at_most_300_lines_or_a_reason_and_360_with_one():
    sizes = {path: source.count("\n") for path, source in SOURCES.items()}
    long = {path: lines for path, lines in sizes.items() if lines > FILE_LINES_MAX}
    assert {path: lines for path, lines in long.items() if path not in LONG_FILES} == {}
    assert {path: lines for path, lines in long.items() if lines > REASONED_LINES_MAX} == {}


def test_each_reason_is_of_a_file_that_is_long():
    assert [
        path for path in LONG_FILES if SOURCES.get(path, "").count("\n") <= FILE_LINES_MAX
    ] == []
