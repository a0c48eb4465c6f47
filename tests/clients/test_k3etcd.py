"""k3etcd's own tests, as its sdist ships them, with one kvd in place of five containers of etcd."""

import re
import sys
from pathlib import Path

import pytest

from tests.clients.processes import CACHE, PYTHON, run
from tests.support.server import ROOT, free_port

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

SHIPPED = CACHE / "k3etcd" / "test" / "test_k3etcd.py"
HOST = Path(__file__).with_name("k3etcd_host.py")
# All but six, which ask for five members, or for one of them to be gone. The first two must come
# before there are users and roles of others.
TESTS = [
    *("test_create_and_get_user", "test_create_and_get_role"),
    *("test_machine_cache", "test_property", "test_members", "test_leader", "test_version"),
    *("test_etcdrequestserror_exception", "test_etcdincompleteread_exception"),
    *("test_set_and_get", "test_decode", "test_ttl", "test_get_conditions", "test_set_conditions"),
    *("test_set_append", "test_watch", "test_update", "test_delete", "test_mkdir", "test_refresh"),
    *("test_lsdir", "test_rlsdir", "test_deldir", "test_rdeldir", "test_auth", "test_st_store"),
    *("test_st_self", "test_exception", "test_names", "test_ids", "test_clienturls"),
    *("test_peerurls", "test_change_peerurls", "test_create_root"),
    *("test_grant_revoke_user_roles", "test_grant_revoke_role_permissions"),
]


def for_one_member(text: str, port: int) -> str:
    """The tests, made to speak of one member on this machine."""
    text = re.sub(r'\n    \("192\.168\.52\.3[1-4]", 3379\),', "", text)
    text = re.sub(r'\n +"(?:etcd_t|node_)[1-4]",', "", text)
    text = re.sub(r"192\.168\.52\.\d+", "127.0.0.1", text)
    text = text.replace("assertEqual(5, len(c.ids))", "assertEqual(1, len(c.ids))")
    return text.replace("3379", str(port))


def test_its_own_tests_pass(tmp_path):
    if not (SHIPPED.exists() and PYTHON.exists()):
        pytest.skip("there is no k3etcd here; scripts/setup-clients installs it")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    tests = tmp_path / "test_k3etcd.py"
    tests.write_text(for_one_member(SHIPPED.read_text(), port))
    ended = run(
        *(PYTHON, HOST, tests, str(port), sys.executable, "-m", "kvd", "--name", "node_0"),
        *("--data-dir", tmp_path / "data", "--listen-client-urls", url),
        *("--initial-advertise-peer-urls", "http://127.0.0.1:3380", "--", *TESTS),
        environment={"PYTHONPATH": str(ROOT)},
        timeout_s=200,
    )
    outcomes = dict(line.split(" ", 1) for line in ended.stdout.splitlines() if " " in line)
    assert {name: outcomes.get(name) for name in TESTS} == dict.fromkeys(TESTS, "passed")
