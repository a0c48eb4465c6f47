"""The page replicas.md: from one machine to three and back, each command as it is written there.

The three machines are directories and ports of this one; etcd is the real one.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import MANUAL
from tests.support.etcd import free_ports
from tests.support.server import PATIENCE_S

PAGE = (MANUAL / "replicas.md").read_text()
HOSTS = ("h1", "h2", "h3")
PORTS = ("2379", "2380", "23790", "23800")
SERVERS = ("kvd", "etcd")

_VARYING = re.compile(r"\b[0-9a-f]{12,16}\b|\bnot lately\b|\b\d+(?:\.\d+)?(?: s\b)?")

# A command, and the indented lines up to the next one.
_STEP = re.compile(
    r"^    (h\d)\$ (.*)\n((?:    (?!h\d\$ ).*\n|\n(?=    (?!h\d\$ )))*)", re.MULTILINE
)


def masked(text: str) -> list[list[str]]:
    """The words of each line, without the numbers that differ from run to run."""
    return [_VARYING.sub("*", line).split() for line in text.splitlines()]


def steps(text: str) -> Iterator[tuple[str, str, str]]:
    """Machine, command and output of each example, in their order."""
    for found in _STEP.finditer(text):
        yield found[1], found[2], re.sub(r"^    ", "", found[3], flags=re.M)


class Machines:
    """Three machines, and the processes that run there."""

    def __init__(self, directory: Path) -> None:
        names = [f"{host}:{port}" for host in HOSTS for port in PORTS]
        ports = free_ports(len(names))
        self.places = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
        self.directory = directory
        self.processes: list[tuple[str, subprocess.Popen[str]]] = []

    def here(self, host: str, command: str) -> str:
        """A command of the page, as it is on this machine."""
        for name, place in self.places.items():
            command = re.sub(rf"\b{name}\b", place, command)
        return command.replace("/var/lib", str(self.directory / host))

    def there(self, host: str, printed: str) -> str:
        """The reverse, of what was printed."""
        for name, place in self.places.items():
            printed = printed.replace(place, name)
        return printed.replace(str(self.directory / host), "/var/lib")

    def run(self, host: str, command: str) -> str:
        ended = subprocess.run(
            ["bash", "-c", self.here(host, command)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env=self.environment(),
        )
        return self.there(host, ended.stdout + ended.stderr)

    def serve(self, host: str, command: str) -> None:
        """Start a server; a kvd listens on return."""
        (self.directory / host).mkdir(exist_ok=True)
        log = self.directory / f"{host}-{len(self.processes)}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self.here(host, command)}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                text=True,
                env=self.environment(),
            )
        kind = command.split(maxsplit=1)[0]
        self.processes.append((kind, process))
        deadline = time.monotonic() + PATIENCE_S
        while kind == "kvd" and "INFO listening on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        home = {"XDG_CONFIG_HOME": str(self.directory)}
        return {**os.environ, "PATH": path, **home}

    def stop(self, *kinds: str) -> None:
        for kind, process in self.processes:
            if kind in kinds:
                process.terminate()
        for kind, process in self.processes:
            if kind in kinds:
                assert process.wait(PATIENCE_S) in (0, -signal.SIGTERM), kind
        self.processes = [each for each in self.processes if each[0] not in kinds]


@pytest.fixture
def machines(tmp_path):
    """Three machines, without anything on them yet."""
    if shutil.which("etcd") is None:
        pytest.skip("there is no etcd here")
    if not Path(sys.executable).with_name("kvd").exists():
        pytest.skip("kvd is not installed in this environment")
    found = Machines(tmp_path)
    yield found
    for _, process in found.processes:
        process.kill()
        process.wait(PATIENCE_S)


def expect(machines, host, command, output):
    """A command prints what the page says, soon: reports and elections take a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        printed = machines.run(host, command)
        if masked(printed) == masked(output):
            return
        assert time.monotonic() < deadline, f"{command}\n{printed}"
        time.sleep(0.2)


def walk(machines, text):
    """Do what the page says, one example after the other."""
    for host, command, output in steps(text):
        if command.split()[0] in SERVERS and "|" not in command:
            machines.serve(host, command)
        else:
            expect(machines, host, command, output)


def on_each(machines, text):
    """Start etcd on the other machines, too, 'the same with their own names'."""
    ((_, command, _),) = steps(text)
    for host in HOSTS:
        own = re.sub(r"(?<=--name )h1|(?<=urls http://)h1", host, command)
        machines.serve(host, own)


def test_each_step_of_the_page_from_one_machine_to_three_and_back(machines):
    prepare, _, rest = PAGE.partition("\n## From one machine to three\n")
    forth, _, back = rest.partition("\n## Back to one machine\n")
    alone = list(steps(back))[-1]
    machines.serve(alone[0], alone[1])
    expect(machines, "h1", "kvdctl --endpoint http://h1:2379 set /old value", "value\n")
    machines.stop("kvd")
    on_each(machines, prepare)
    walk(machines, forth)
    expect(machines, "h3", "kvdctl --endpoint http://h3:2379 get /old", "value\n")
    machines.stop("kvd")
    walk(machines, back)
    for key, value in (("/old", "value"), ("/greeting", "hello")):
        expect(machines, "h1", f"kvdctl --endpoint http://h1:2379 get {key}", f"{value}\n")
    machines.stop(*SERVERS)
