"""vip-manager 1.0 holds an address as long as a key in kvd names its host.

Everything runs in a network of its own, with a pair of interfaces that lead nowhere.
"""

import os
import shutil
import sys
from collections.abc import Callable

import pytest

from tests.clients.processes import Process, program, run
from tests.support.server import Server

pytestmark = pytest.mark.clients

KEY = "/service/acc/leader"
ADDRESS = "10.77.0.1/32"
NETWORK = (
    "ip link set lo up && ip link add vip0 type veth peer name vip1"
    " && ip address add 10.77.0.2/24 dev vip0 && ip link set vip0 up && ip link set vip1 up"
    " && echo made && exec sleep 300"
)


@pytest.fixture
def network(start: Callable[..., Process]) -> tuple[str, ...]:
    """What is put before a command to run it in a network of its own."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a network of one's own needs root and unshare")
    made = start("unshare", "--net", "sh", "-c", f"PATH=$PATH:/usr/sbin; {NETWORK}")
    try:
        made.wait_for("made\n")
    except AssertionError as error:
        pytest.skip(f"no network can be made here: {error}")
    return ("nsenter", f"--net=/proc/{made.pid}/ns/net")


@pytest.fixture
def server(network, make_server) -> Server:
    enter, into = network
    launch = (into, sys.executable, "-m", "kvd")
    return make_server(python=enter, launch=launch).start()


def test_the_address_comes_and_goes_with_the_key(network, server, start):
    vip_manager, etcdctl = program("vip-manager"), program("etcdctl")

    def etcd(*argv: str) -> None:
        command = (*network, etcdctl, "--endpoints", server.url, *argv)
        ended = run(*command, environment={"ETCDCTL_API": "2"})
        assert ended.returncode == 0, ended.stderr

    monitor = start(*network, program("ip"), "-oneline", "monitor", "address")
    vip = start(
        *(*network, vip_manager, "--ip", "10.77.0.1", "--netmask", "32", "--interface", "vip0"),
        *("--trigger-key", KEY, "--trigger-value", "me", "--interval", "100"),
        *("--dcs-endpoints", server.url),
    )
    vip.wait_for("100: Key not found (/service)")
    changes = Changes(monitor)
    etcd("set", KEY, "me", "--ttl", "2")
    changes.wait_for(has_address=True)
    # Nobody refreshes it: it expires, and the address goes.
    changes.wait_for(has_address=False)
    etcd("set", KEY, "me")
    changes.wait_for(has_address=True)
    etcd("set", KEY, "somebody else")
    changes.wait_for(has_address=False)
    etcd("set", KEY, "me")
    changes.wait_for(has_address=True)
    etcd("rm", KEY)
    changes.wait_for(has_address=False)


class Changes:
    """What the kernel says of the address, change by change."""

    def __init__(self, monitor: Process) -> None:
        self._monitor = monitor
        self._seen = 0

    def wait_for(self, *, has_address: bool) -> None:
        """Wait for the next change of the address, which must be this one."""
        self._monitor.wait_for(lambda text: text.count(ADDRESS) > self._seen)
        lines = [line for line in self._monitor.text.splitlines() if ADDRESS in line]
        assert ("Deleted" not in lines[self._seen]) == has_address, lines
        self._seen += 1
