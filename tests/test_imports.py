"""Who may import whom: the rooms of the house and which of them stay free of the outside world."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# These know rules, words and bytes: what they return depends on what they are given alone.
PURE = (
    "kvd.v2.auth",
    "kvd.v2.auth_commands",
    "kvd.v2.auth_json",
    "kvd",
    "kvd.handlers.cross_site",
    "kvd.v2.commands",
    "kvd.config.load",
    "kvd.config.file",
    "kvd.v2.documents",
    "kvd.v2.errors",
    "kvd.config.etcd_flags",
    "kvd.config.compat",
    "kvd.v2.extras.parameters",
    "kvd.handlers.extras.reading.nodes",
    "kvd.v2.extras.raw",
    "kvd.v2.extras.txn",
    "kvd.v2.extras.watch",
    "kvd.config.flags",
    "kvd.config.help",
    "kvd.v2.go_json",
    "kvd.lines",
    "kvd.v2.rules",
    "kvd.v2.peer_urls",
    "kvd.core.watch.recent_events",
    "kvd.v2.request",
    "kvd.v2.response",
    "kvd.config.sources",
    "kvd.config.tls",
    "kvd.config.urls",
    "kvd.config.values",
    "kvd.storage.format.applied",
    "kvd.storage.format.records",
    "kvd.storage.format.document",
    "kvd.storage.format.event",
    "kvd.storage.format.frame",
    "kvd.storage.format.identity",
    "kvd.storage.format.names",
    "kvd.storage.format.node",
    "kvd.storage.format.sums",
    "kvd.storage.format.tables",
)
OUTSIDE_WORLD = frozenset(
    [
        *("asyncio", "httptools", "lmdb", "logging", "os", "random"),
        *("secrets", "socket", "subprocess", "threading", "time", "tornado"),
    ]
)

# The only places that know of these libraries.
KEPT_IN = {
    "lmdb": {
        *(
            "kvd.storage.snapshot.checkpoint",
            "kvd.storage.index.completeness",
            "kvd.storage.tools.digest",
            "kvd.storage.index.environment",
        ),
        *(
            "kvd.storage.index.errors",
            "kvd.storage.snapshot.directory",
            "kvd.storage.index.state",
            "kvd.storage.index.view",
        ),
    },
    "tornado": {
        *(
            "kvd.access",
            "kvd.handlers.info",
            "kvd.http.header_cache",
            "kvd.http.framing",
            "kvd.handlers.router",
        ),
        *("kvd.handlers.extras.exchange", "kvd.handlers.extras.routes"),
        *(
            "kvd.handlers.base",
            "kvd.http.connection",
            "kvd.handlers.keys.key_space",
            "kvd.handlers.members",
        ),
        *("kvd.monitoring.routes", "kvd.server"),
    },
    "prometheus_client": {
        "kvd.monitoring.etcd_metrics",
        "kvd.monitoring.prometheus",
        "kvd.monitoring.metrics",
    },
    "bcrypt": {"kvd.handlers.passwords"},
    "httptools": {"kvd.http.framing", "kvd.http.connection"},
    "yaml": {"kvd.config.file", "kvd.config.help"},
    "ssl": {"kvd.net.tls", "kvd.net.tls_connection"},
    "cryptography": {"kvd.net.self_signed"},
}

LOG = {f"storage.{name}" for name in ("keptlog", "quarantine", "segments", "spare", "wal")}
INDEX = {
    f"storage.{name}"
    for name in (
        *("completeness", "flush", "index", "indexerrors", "lmdbfile"),
        *("pages", "state", "view"),
    )
}

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("kvd", "storage")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def imports_of(module: str) -> set[str]:
    """The modules that a module names anywhere in its source, those of a package in full."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{module} imports relatively"
            within = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= within  # `from storage import disk` means the module, not the package
            if len(within) < len(node.names):
                found.add(node.module)
    return found


def libraries_of(module: str) -> set[str]:
    return {name.partition(".")[0] for name in imports_of(module)}


def test_every_listed_module_exists():
    listed = set(PURE).union(LOG, INDEX, *KEPT_IN.values())
    assert listed <= MODULES.keys()


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("storage")])
def test_storage_knows_nothing_of_kvd(module):
    assert "kvd" not in libraries_of(module)


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_leaves_the_outside_world_alone(module):
    assert not libraries_of(module) & OUTSIDE_WORLD


@pytest.mark.parametrize("module", PURE)
def test_a_pure_module_imports_only_pure_modules(module):
    assert imports_of(module) & MODULES.keys() <= set(PURE)


@pytest.mark.parametrize("library", KEPT_IN)
def test_a_library_is_known_only_where_it_is_kept(library):
    knowing = {module for module in MODULES if library in libraries_of(module)}
    assert knowing <= KEPT_IN[library]


@pytest.mark.parametrize(("those", "others"), [(LOG, INDEX), (INDEX, LOG)], ids=["log", "index"])
def test_the_log_and_the_index_do_not_know_each_other(those, others):
    assert not set().union(*map(imports_of, those)) & others


def test_imports_go_in_no_circles():
    graph = {module: imports_of(module) & MODULES.keys() for module in MODULES}
    # Raises CycleError, which names the circle.
    assert set(TopologicalSorter(graph).static_order()) == MODULES.keys()
