"""The least that a server in Python can cost: `python -m bench.compare.bare`.

A server that keeps the promise of a write and does nothing else: it finds the ends of the requests,
appends their bodies to a file, syncs that once for all that came in a turn of its loop, and sends
each the same answer, as long as one of kvd. It looks at no method and no key, decides nothing,
holds nothing and could not restart. Compared with etcd under the same load it shows which ratio is
within reach on a machine and of an interpreter, so that a missed demand can be told from a missed
chance.

    .venv/bin/python -m bench.compare.bare [--rounds 5] [--seconds 1] [--connections 1 16 64 256]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bench.load import servers, wrk
from bench.load.keyspace import Keyspace
from bench.load.servers import HOST, Server
from bench.load.wire import LoadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BODY = (
    b'{"action":"set","node":{"key":"/bench/put/k0000000","value":"' + b"x" * 100 + b'",'
    b'"modifiedIndex":1000000,"createdIndex":1000000},"prevNode":{"key":"/bench/put/k0000000",'
    b'"value":"' + b"x" * 100 + b'","modifiedIndex":1000000,"createdIndex":1000000}}\n'
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Etcd-Cluster-Id: cdf818194e3a8c32\r\n"
    b"X-Etcd-Index: 1000000\r\nX-Raft-Index: 1000000\r\nX-Raft-Term: 2\r\n"
    b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: %d\r\n\r\n" % len(BODY)
) + BODY
_LENGTH = b"Content-Length: "
SPACE = Keyspace.make("put", keys=1000, value_bytes=100, seed=1)


class Log:
    """One file that grows, synced once for all that came in a turn of the loop."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY)
        self._end = 0
        self._waiting: list[tuple[asyncio.WriteTransport, bytes]] = []
        os.posix_fallocate(self._file, 0, 1 << 30)

    def append(self, transport: asyncio.WriteTransport, body: bytes) -> None:
        """Make a body durable with the others of this turn, then answer it."""
        if not self._waiting:
            self._loop.call_soon(self._sync)
        self._waiting.append((transport, body))

    def _sync(self) -> None:
        waiting, self._waiting = self._waiting, []
        frame = b"".join([body for _, body in waiting])
        os.pwrite(self._file, frame, self._end)
        self._end += len(frame)
        os.fdatasync(self._file)
        for transport, _ in waiting:
            transport.write(ANSWER)


class Bare(asyncio.Protocol):
    """A connection: finds where its requests end."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note where answers go."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """Append the bodies of all requests that are whole."""
        data = self._rest + data
        while (head_end := data.find(b"\r\n\r\n")) >= 0:
            place = data.find(_LENGTH, 0, head_end)
            if place < 0:
                self._transport.write(ANSWER)
                data = data[head_end + 4 :]
                continue
            body = head_end + 4
            end = body + int(data[place + len(_LENGTH) : data.index(b"\r\n", place)])
            if end > len(data):
                break
            self._log.append(self._transport, data[body:end])
            data = data[end:]
        self._rest = data


async def serve(directory: Path) -> None:
    """Serve on a port of the system's choice, which is printed on stderr."""
    loop = asyncio.get_running_loop()
    directory.mkdir(exist_ok=True)
    log = Log(directory / "log", loop)
    server = await loop.create_server(lambda: Bare(log), HOST, 0)
    print(f"listening on http://{HOST}:{server.sockets[0].getsockname()[1]}", file=sys.stderr)
    await server.serve_forever()


def bare(scratch: Path) -> Server:
    """Return this server, not started yet."""

    def command(_port: int, data: Path) -> list[str]:
        return [sys.executable, "-m", "bench.compare.bare", "--serve", str(data)]

    return Server("bare", command, scratch)


def compare(scratch: Path, connections: Sequence[int], rounds: int, seconds: int) -> None:
    """Print the rates of all three servers, in turn, and the ratios to etcd's.

    Raises:
        LoadError: there is no etcd, no wrk, or a server failed.
    """
    makers: list[Callable[[Path], Server]] = [bare, servers.kvd, servers.etcd]
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(make(scratch)) for make in makers]
        print("PUT, connections: bare, kvd and etcd, writes/s; ratios to etcd (bare, kvd)")
        for count in connections:
            rates: list[list[float]] = []
            for _ in range(rounds):
                figures = [
                    wrk.run(s.address, "put", SPACE, connections=count, seconds=seconds)[0]
                    for s in running
                ]
                rates.append([f.requests / f.seconds for f in figures])
            medians = [statistics.median(of_server) for of_server in zip(*rates, strict=True)]
            ratios = [
                statistics.median(round_[place] / round_[-1] for round_ in rates)
                for place in range(2)
            ]
            print(count, *(f"{rate:,.0f}" for rate in medians), *(f"{r:.2f}" for r in ratios))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program."""
    parser = argparse.ArgumentParser(prog="bare", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1, help="of each load (default: 1)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--dir", type=Path, default=servers.SCRATCH, help="a directory on a disk")
    parser.add_argument("--serve", type=Path, metavar="DIRECTORY", help="be the server")
    options = parser.parse_args(arguments)
    if options.serve:
        run = asyncio.run
        with contextlib.suppress(ImportError):
            import uvloop  # noqa: PLC0415 -- the extra `fast`, as for kvd

            run = uvloop.run
        run(serve(options.serve))
        return 0
    try:
        scratch = servers.disk_directory(options.dir)
        compare(scratch, options.connections, options.rounds, options.seconds)
    except LoadError as error:
        print(f"bare: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
