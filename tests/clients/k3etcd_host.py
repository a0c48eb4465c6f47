"""Runs k3etcd's own tests, named on the command line, on a Python without Docker.

    python k3etcd_host.py TESTS_PY PORT COMMAND... -- NAME...

What the tests start and stop as containers is one process here, COMMAND, on PORT of this machine. A
line is printed for each test: its name and `passed`, or what was wrong with it.
"""

import atexit
import importlib.util
import socket
import subprocess
import sys
import time
import types
import unittest

_, path, port, *rest = sys.argv
command, names = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
running = []


def start(*_):
    """Start the server, if it does not run, and wait until it listens."""
    if running:
        return
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    running.append(process)
    while not listens():
        if process.poll() is not None:
            raise RuntimeError("the server has ended")
        time.sleep(0.05)


def listens():
    """Whether somebody listens on the port."""
    try:
        socket.create_connection(("127.0.0.1", int(port))).close()
    except ConnectionRefusedError:
        return False
    return True


@atexit.register
def stop(*_):
    """End the server as a crash would."""
    while running:
        process = running.pop()
        process.kill()
        process.wait()


def nothing(*_):
    """Do nothing."""


def provide(name, **contents):
    """Put a module where an import finds it."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)


docker = dict.fromkeys(("pull_image", "create_network", "remove_container"), nothing)
provide("k3utdocker", start_container=start, stop_container=stop, **docker)
provide("k3ut", dd=nothing)
provide("trustme")

spec = importlib.util.spec_from_file_location("test_k3etcd", path)
module = sys.modules["test_k3etcd"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

for name in names:
    result = unittest.TestResult()
    suite = unittest.TestSuite([module.TestClient(name)])
    suite.run(result)
    problems = [text.strip().splitlines()[-1] for _, text in result.errors + result.failures]
    sys.stdout.write(f"{name} {'; '.join(problems) or 'passed'}\n")
