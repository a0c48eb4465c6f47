"""A kvd whose parent is a test, which has it do what no client can.

    python -m kvd.testing.child DESCRIPTOR SETTING FLAGS OF KVD

It is the command `kvd`, and reads verbs (`Controls`) from a socket, one JSON line each:

    [1, "wait_for_index", 7, 5.0]  ->  [1, {"result": true}] or [1, {"error": "..."}]

The number tells which line is answered. SETTING is JSON: the fields of the `ClockSetting` of the
machine's clocks. The end of the socket is that of the parent, and ends this process too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from kvd.__main__ import main
from kvd.server import KvdServer
from kvd.storage.failpoints import Faults
from kvd.testing.controls import Controls
from kvd.testing.machine_time import ClockSetting, MachineTime


async def _follow(channel: socket.socket, controls: Controls) -> None:
    """Do what the parent says, until it ends."""
    reader, writer = await asyncio.open_connection(sock=channel)
    with contextlib.closing(writer):  # else it is a ResourceWarning at a stop
        while line := await reader.readline():
            number, verb, *arguments = json.loads(line)
            outcome: dict[str, object]
            try:
                outcome = {"result": await getattr(controls, verb)(*arguments)}
            except Exception as error:  # noqa: BLE001 -- the parent raises it
                outcome = {"error": f"{type(error).__name__}: {error}"}
            for handler in logging.getLogger().handlers:
                handler.flush()  # the parent may read the log as soon as it has the outcome
            # An interrupt may have cost the parent the end of the line before.
            writer.write(b"\n%b\n" % json.dumps([number, outcome]).encode())
    os.kill(os.getpid(), signal.SIGTERM)


def _make_server(
    channel: socket.socket,
    machine: MachineTime,
    *parts: Any,
    faults: Faults,
    **options: Any,
) -> KvdServer:
    server = KvdServer(*parts, faults=faults, clock=machine.clock, **options)
    _tasks.append(asyncio.ensure_future(_follow(channel, Controls(server, faults, machine))))
    return server


_tasks: list[asyncio.Task[None]] = []
"""The loop holds its tasks by weak references only."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    descriptor, setting, *flags = argv
    machine = MachineTime()
    machine.setting = ClockSetting._make(json.loads(setting))
    channel = socket.socket(fileno=int(descriptor))
    return main(flags, partial(_make_server, channel, machine))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
