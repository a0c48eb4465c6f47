"""Network namespaces, one for each process, on one bridge; which of them reach each other.

The trial itself runs in a namespace of its own (`apart`), and each further one lives as long as a
process that does nothing: so the kernel removes all of it with the trial, however that ends.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable

_NETWORK = "10.79.0"
_INSIDE = "TRIAL_OF_REPLICAS_INSIDE"


def apart() -> bool:
    """Run this program again in a network of its own, unless it is in one; does not return then.

    Returns False where that is not allowed: then nothing can be cut off.
    """
    if os.environ.get(_INSIDE):
        return True
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    tools = all(map(shutil.which, ("unshare", "nsenter", "ip", "setpriv")))
    if not tools or subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        return False
    again = [sys.executable, "-m", "tests.replicas.trials", *sys.argv[1:]]
    os.environ[_INSIDE] = "1"
    return os.execvp(own[0], [*own, "--", *again])


class Place:
    """An address.

    Attributes:
        of: The flags of nsenter that lead to its namespace; empty where there is only one.
    """

    def __init__(self, address: str, of: tuple[str, ...] = ()) -> None:
        self.address = address
        self.of = of
        self._blocked: set[str] = set()

    def run(self, *command: str) -> None:
        """Run a command here."""
        entered = ("nsenter", *self.of, "--") if self.of else ()
        subprocess.run([*entered, *command], check=True, capture_output=True)

    def inside(self) -> list[str]:
        """Return the prefix of a command that runs here, and ends with this process."""
        entered = ("nsenter", *self.of, "--") if self.of else ()
        dies_with_this = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
        return [*entered, *dies_with_this]

    def block(self, others: Iterable["Place"]) -> None:
        """Let nothing through, to or from these places."""
        for other in others:
            for one, end in ((self, other), (other, self)):
                if end.address not in one._blocked:
                    one._blocked.add(end.address)
                    one.run("ip", "route", "add", "blackhole", f"{end.address}/32")

    def heal(self) -> None:
        """Let everything through that leaves from here."""
        while self._blocked:
            self.run("ip", "route", "del", "blackhole", f"{self._blocked.pop()}/32")


class Network:
    """Some places; with `is_apart` things can be cut off, otherwise all are on the loopback.

    Attributes:
        outside: Where the trial itself is, and so its clients.
    """

    def __init__(self, *, is_apart: bool) -> None:
        self.is_apart = is_apart
        self.outside = Place(f"{_NETWORK}.254")
        self._holders: list[subprocess.Popen[bytes]] = []
        if is_apart:
            self.outside.run("ip", "link", "set", "lo", "up")
            self.outside.run("ip", "link", "add", "bridge", "type", "bridge")
            self.outside.run("ip", "address", "add", f"{_NETWORK}.254/24", "dev", "bridge")
            self.outside.run("ip", "link", "set", "bridge", "up")

    def place(self, number: int) -> Place:
        """Make the place with a number from 1 to 253."""
        if not self.is_apart:
            return Place(f"127.0.79.{number}")
        holder = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._holders.append(holder)
        assert holder.stdout is not None
        holder.stdout.readline()  # it is in its namespace
        end, pid = f"end{number}", str(holder.pid)
        place = Place(f"{_NETWORK}.{number}", ("--target", pid, "--net"))
        self.outside.run("ip", "link", "add", end, "type", "veth", "peer", "eth0", "netns", pid)
        self.outside.run("ip", "link", "set", end, "master", "bridge", "up")
        place.run("ip", "address", "add", f"{place.address}/24", "dev", "eth0")
        place.run("ip", "link", "set", "eth0", "up")
        place.run("ip", "link", "set", "lo", "up")
        return place

    def close(self) -> None:
        for holder in self._holders:
            with contextlib.suppress(ProcessLookupError):
                holder.send_signal(signal.SIGKILL)
            holder.communicate()
