"""Which folder may import which, and which of them stay free of the outside world."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.project.test_packaging import ON_THE_LOWER_BOUNDS

ROOT = Path(__file__).parent.parent.parent

# From the top down: a box imports boxes below its row only. What is in no row stands at the top.
ROWS = (
    ("kvd.testing",),
    ("kvd.__main__", "kvd.ctl", "kvd.embedded"),
    ("kvd.server",),
    ("kvd.wiring",),
    ("kvd.monitoring",),
    ("kvd.handlers", "kvd.net", "kvd.replicas"),
    ("kvd.core", "kvd.http"),
    ("kvd.limits", "kvd.migrate"),
    ("kvd.v2", "kvd.config", "kvd.logs"),
    ("kvd.failures", "kvd.log_output", "kvd.crash_file", "kvd.process", "kvd.descriptors"),
    ("kvd", "kvd.json_text", "kvd.lines", "kvd.recipes"),
    ("kvd.client",),
)
STORAGE_ROWS = (
    ("tools",),
    ("store",),
    ("journal", "recovery"),
    ("evidence", "replay"),
    ("snapshot",),
    ("index", "wal"),
    ("directory", "failpoints", "frame_reader", "usage"),
    ("aio", "disk", "errors", "format", "processor"),
)

# What a box of kvd may know of the storage; others may know all but the tools.
OF_STORAGE = {
    "kvd.config": (),
    "kvd.client": (),
    "kvd.v2": ("format",),
    "kvd.limits": (),
    "kvd.http": ("aio",),
    "kvd.net": ("disk",),
    "kvd.logs": (),
    "kvd.log_output": (),
    "kvd.json_text": (),
    "kvd.lines": (),
    "kvd.process": (),
    "kvd.descriptors": (),
}
# All that these may know of kvd beside their own folder: they know no key and no etcd.
OF_KVD = {
    "kvd.http": {"kvd", "kvd.json_text", "kvd.limits", "kvd.logs"},
    "kvd.limits": {"kvd.json_text"},
}
USERS_OF_TOOLS = {"kvd.__main__", "kvd.ctl", "kvd.migrate", "kvd.replicas"}
READERS_OF_CONFIG = {
    *("kvd.__main__", "kvd.embedded", "kvd.server", "kvd.wiring", "kvd.net", "kvd.replicas")
}

# These know rules, words and bytes: what they return depends on what they are given alone.
PURE = (
    "kvd.v2",
    "kvd.config",
    "kvd.json_text",
    "kvd.lines",
    "kvd.handlers.cross_site",
    "kvd.storage.format",
)
# In functions only: without --replicate nothing of it is imported.
IMPORT_REPLICAS_WHERE_USED = {
    *("kvd.__main__", "kvd.ctl.offline.verbs", "kvd.server"),
    *("kvd.wiring.context", "kvd.wiring.core", "kvd.wiring.opening", "kvd.wiring.replicas"),
}
OUTSIDE_WORLD = frozenset(
    [
        *("asyncio", "httptools", "lmdb", "logging", "os", "random"),
        *("secrets", "socket", "subprocess", "threading", "time", "tornado"),
    ]
)

# The only places that know of these libraries.
KEPT_IN = {
    "lmdb": ("kvd.storage.index", "kvd.storage.snapshot", "kvd.storage.tools"),
    "tornado": ("kvd.handlers", "kvd.http", "kvd.monitoring", "kvd.wiring"),
    "prometheus_client": ("kvd.monitoring",),
    "bcrypt": ("kvd.handlers.passwords",),
    "httptools": ("kvd.client.wire", "kvd.http"),
    "yaml": ("kvd.config", "kvd.migrate"),
    "click": ("kvd.ctl",),
    "h2": ("kvd.replicas.etcd.grpc",),
    "asyncpg": ("kvd.replicas.postgres.log", "kvd.replicas.postgres.session"),
    "ssl": ("kvd.client", "kvd.ctl.session", "kvd.net", "kvd.replicas", "kvd.testing"),
    "cryptography": ("kvd.net.self_signed",),
}

# `kvd/storage` leads to `storage`, which a glob does not follow.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder, _, names in os.walk(ROOT / "kvd", followlinks=True)
    for path in (Path(folder) / name for name in names)
    if path.suffix == ".py"
}
STORAGE = "kvd.storage"


def imports_of(module: str) -> set[str]:
    """The modules that a module names anywhere in its source, those of a package in full."""
    found: set[str] = set()
    if module == "kvd":
        return found  # it names the types of what it imports when that is used
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module} imports relatively"
            within = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= within  # `from kvd.storage import disk` means the module, not the package
            if len(within) < len(node.names):
                found.add(node.module)
    return found


IMPORTS = {module: imports_of(module) for module in MODULES}


def libraries_of(module: str) -> set[str]:
    return {name.partition(".")[0] for name in IMPORTS[module]}


def is_in(module: str, places: tuple[str, ...] | set[str]) -> bool:
    return any(module == place or module.startswith(f"{place}.") for place in places)


def box(module: str) -> str:
    """The folder, or the file beside the folders, that a module is in."""
    if is_in(module, (STORAGE,)):
        return module.removeprefix(STORAGE).strip(".").partition(".")[0]
    return ".".join(module.split(".")[:2])


def edges(*, of_storage: bool) -> set[tuple[str, str]]:
    """The imports from one box to another, all of them in the storage or all of them above it."""
    return {
        (box(module), box(name))
        for module, names in IMPORTS.items()
        for name in names & MODULES.keys()
        if is_in(module, (STORAGE,)) == is_in(name, (STORAGE,)) == of_storage
        and box(module) != box(name)
    }


def row_of(name: str, rows: tuple[tuple[str, ...], ...]) -> int:
    return next((number for number, row in enumerate(rows) if name in row), -1)


def test_the_rows_name_what_is_there():
    boxes = {box(module) for module in MODULES if not is_in(module, (STORAGE,))}
    assert {name for row in ROWS for name in row} == boxes
    rooms = {box(module) for module in MODULES if is_in(module, (STORAGE,))} - {""}
    assert {name for row in STORAGE_ROWS for name in row} == rooms


@pytest.mark.parametrize("of_storage", [False, True], ids=["kvd", "storage"])
def test_the_architecture_shows_these_rows(of_storage):
    page = (ROOT / ("kvd/storage" if of_storage else "kvd") / "README.md").read_text()
    _, _, section = page.partition("\n## Imports\n")
    lines = section.partition("\n## ")[0].splitlines()
    shown = [set(line.split()) for line in lines if line.startswith("    ")]
    rows = STORAGE_ROWS if of_storage else ROWS
    assert shown == [{name.removeprefix("kvd.") for name in row} for row in rows]


@pytest.mark.parametrize("of_storage", [False, True], ids=["kvd", "storage"])
def test_imports_go_down_only(of_storage):
    rows = STORAGE_ROWS if of_storage else ROWS
    upwards = [
        (above, below)
        for above, below in edges(of_storage=of_storage)
        if row_of(above, rows) >= row_of(below, rows)
    ]
    assert upwards == []


def test_the_storage_knows_nothing_above_it():
    above = {
        (module, name)
        for module, names in IMPORTS.items()
        if is_in(module, (STORAGE,))
        for name in names
        if is_in(name, ("kvd",)) and not is_in(name, (STORAGE,))
    }
    assert above == set()


def test_what_is_above_the_storage_knows_no_more_of_it_than_it_needs():
    known = {
        (box(module), box(name))
        for module, names in IMPORTS.items()
        if not is_in(module, (STORAGE,))
        for name in names & MODULES.keys()
        if is_in(name, (STORAGE,))
    }
    assert [(b, room) for b, room in known if room not in OF_STORAGE.get(b, (room,))] == []
    assert {b for b, room in known if room == "tools"} <= USERS_OF_TOOLS


@pytest.mark.parametrize("place", OF_KVD)
def test_what_serves_http_knows_no_key_and_no_etcd(place):
    known = {below for above, below in edges(of_storage=False) if above == place}
    assert known == OF_KVD[place]


def test_settings_are_read_where_the_server_is_wired():
    readers = {
        box(module)
        for module, names in IMPORTS.items()
        if any(is_in(name, ("kvd.config",)) for name in names)
    }
    assert readers - {"kvd.config"} <= READERS_OF_CONFIG


@pytest.mark.parametrize("place", PURE)
def test_what_is_pure_leaves_the_outside_world_alone(place):
    modules = [module for module in MODULES if is_in(module, (place,))]
    assert modules
    assert [module for module in modules if libraries_of(module) & OUTSIDE_WORLD] == []


@pytest.mark.parametrize("place", PURE)
def test_what_is_pure_imports_only_what_is_pure(place):
    others = [
        (module, name)
        for module in MODULES
        if is_in(module, (place,))
        for name in IMPORTS[module] & MODULES.keys()
        if name != "kvd" and not is_in(name, PURE)
    ]
    assert others == []


@pytest.mark.parametrize("library", KEPT_IN)
def test_a_library_is_known_only_where_it_is_kept(library):
    knowing = [module for module in MODULES if library in libraries_of(module)]
    assert knowing
    assert [module for module in knowing if not is_in(module, KEPT_IN[library])] == []


def test_a_server_that_is_no_replica_knows_nothing_of_replicas():
    outside = [module for module in MODULES if not is_in(module, ("kvd.replicas",))]
    knowing = {m for m in outside if any(is_in(name, ("kvd.replicas",)) for name in IMPORTS[m])}
    assert knowing <= IMPORT_REPLICAS_WHERE_USED
    at_once = [
        module
        for module in knowing - {"kvd.wiring.replicas"}  # imported by a server that is one
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.ImportFrom) and is_in(str(node.module), ("kvd.replicas",))
    ]
    assert at_once == []
    code = (
        "import sys, kvd.__main__, kvd.embedded, kvd.wiring.build\n"
        "print(*sorted({'asyncpg', 'h2', 'hpack', 'kvd.replicas'} & sys.modules.keys()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == ""


def test_imports_go_in_no_circles():
    graph = {module: names & MODULES.keys() for module, names in IMPORTS.items()}
    # Raises CycleError, which names the circle.
    assert set(TopologicalSorter(graph).static_order()) == MODULES.keys()


def test_a_folder_holds_at_most_twelve_modules():
    held: dict[str, int] = {}
    for path in MODULES.values():
        if path.name != "__init__.py":
            held[str(path.parent)] = held.get(str(path.parent), 0) + 1
    assert {folder: count for folder, count in held.items() if count > 12} == {}


def test_what_runs_on_the_lower_bounds_is_there():
    # Only `pytest -m packaging`, which takes long, would notice a file that has moved.
    files = [ROOT / "tests" / f"{name}.py" for name in ON_THE_LOWER_BOUNDS]
    assert [path for path in files if not path.exists()] == []


def test_the_storage_has_one_name():
    code = "import storage"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if not (ROOT / "storage").exists():
        pytest.skip("this is an sdist, where the folder is kvd/storage alone")
    assert ended.returncode == 1
    assert "this folder is the package kvd.storage" in ended.stderr
