"""python-etcd's own integration tests, as its package ships them, with kvd in place of etcd."""

import os
import re
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import etcd
import pytest

from tests.clients.processes import KVD_COMMAND, as_etcd, program, run
from tests.support.server import ROOT, free_port

SHIPPED = Path(etcd.__file__).parent / "tests"
TESTS = {
    "integration/test_simple.py": {
        *("TestSimple.test_machines", "TestSimple.test_leader", "TestSimple.test_update"),
        *("TestSimple.test_get_set_delete", "TestSimple.test_retrieve_subkeys"),
        *("TestSimple.test_directory_ttl_update", "TestErrors.test_is_not_a_file"),
        "TestErrors.test_test_and_set",
        "TestErrors.test_creating_already_existing_directory",
        "TestClusterFunctions.test_reconnect_not_allowed",
        "TestClusterFunctions.test_reconnet_fails",
        *("TestWatch.test_watch", "TestWatch.test_watch_indexed"),
        *("TestWatch.test_watch_generator", "TestWatch.test_watch_indexed_generator"),
    },
    "integration/test_ssl.py": {
        "TestEncryptedAccess.test_get_set_unauthenticated",
        "TestEncryptedAccess.test_get_set_unauthenticated_with_ca",
        "TestEncryptedAccess.test_get_set_authenticated",
        "TestClientAuthenticatedAccess.test_get_set_unauthenticated",
    },
}


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """The tests, on ports of their own."""
    ports = {name: str(free_port()) for name in ("6001", "6002", "6003", "6004", "8001", "9999")}
    package = tmp_path / "shipped"
    shutil.copytree(SHIPPED, package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in package.rglob("*.py"):
        text = path.read_text().replace("etcd.tests.integration", "shipped.integration")
        path.write_text(re.sub("|".join(ports), lambda found: ports[found[0]], text))
    (tmp_path / "conftest.py").write_text("import tests.clients.shipped\n")
    return package


def outcomes(suite: Path, file: str, etcd_command: str = KVD_COMMAND) -> dict[str, str]:
    """Run a file of the suite; what became of each test, by class and name."""
    bin_dir = as_etcd(suite.parent / "bin", etcd_command)
    report = suite.parent / "report.xml"
    ended = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull),
        *("--rootdir", suite.parent, "--junit-xml", report, suite / file),
        environment={
            "PATH": f"{bin_dir}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{suite.parent}{os.pathsep}{ROOT}",
        },
        timeout_s=110,
        cwd=suite.parent,
    )
    assert report.exists(), ended.stdout + ended.stderr
    found: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        what = [f"{child.tag}: {child.text}" for child in case if "system" not in child.tag]
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        found[name] = "\n".join(what) or "passed"
    return found


@pytest.mark.parametrize("file", TESTS)
def test_its_own_tests_pass(suite, file):
    found = outcomes(suite, file)
    assert found == dict.fromkeys(TESTS[file], "passed")


@pytest.mark.clients
def test_its_tests_of_users_end_as_with_etcd(suite):
    # This release reads what etcd 2.2 said of users, and fails with what 2.3 and later say.
    real = f'exec "{program("etcd")}" --enable-v2=true'
    expected = outcomes(suite, "test_auth.py", real)
    found = outcomes(suite, "test_auth.py")
    assert len(found) == 6
    assert {name: last(what) for name, what in found.items()} == {
        name: last(what) for name, what in expected.items()
    }


def last(what: str) -> str:
    """Where a test failed, and with which exception."""
    return what.rpartition("\n")[2]
