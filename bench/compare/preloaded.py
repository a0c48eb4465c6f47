"""Many keys that stay on one server for several measurements: a million, ten millions.

Loading them takes minutes, so it is done once, and reading all of them back after each measurement
would take as long; instead it is remembered what each key holds, and after each run all keys that
were touched are compared. `verify_some` compares others too, or all.
"""

from __future__ import annotations

import random
from array import array
from itertools import cycle
from typing import TYPE_CHECKING

from bench.load import wrk
from bench.load.closed_loop import Samples, drive
from bench.load.keyspace import Keyspace
from bench.load.wire import LoadError, render
from bench.load.workloads import (
    NUMBER_DIGITS,
    Lane,
    Script,
    WrongAnswer,
    check_value,
    read_back_keys,
    succeeded,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bench.load.closed_loop import Figures
    from bench.load.servers import Server
    from bench.load.workloads import Expected

LOAD_CONNECTIONS = 128
READ_CONNECTIONS = 64
VERIFIED_AT_ONCE = 200_000


class Held(dict[int, bytes | None]):
    """Values of keys, as far as they were read or written; others are looked up."""

    def __init__(self, space: Keyspace, numbers: array[int]) -> None:
        self.space = space
        self.numbers = numbers

    def __missing__(self, key: int) -> bytes:
        held = self[key] = self.space.value(self.numbers[key])
        assert held is not None
        return held


class Standing:
    """The keys of one server, `/bench/standing/k0000000` and on, and the number in each value."""

    def __init__(self, server: Server, *, keys: int, value_bytes: int) -> None:
        self.server = server
        self.space = Keyspace.make("standing", keys=keys, value_bytes=value_bytes, seed=1)
        self.numbers = array("q", bytes(8 * keys))
        self._written = 0

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Return all keys with the values they start with, in the order of their paths."""
        value = self.space.value(0)
        for key in range(self.space.keys):
            yield self.space.path(key).removeprefix("/v2/keys").encode(), value

    def load(self) -> Figures:
        """Write all keys over HTTP."""
        lanes = [Lane(self.space, lane, LOAD_CONNECTIONS, {}) for lane in range(LOAD_CONNECTIONS)]
        return drive(self.server.address, [load_script(lane) for lane in lanes])

    def measure(
        self,
        workload: str,
        *,
        connections: int,
        seconds: float,
        seed: int,
        use_wrk: bool,
        samples: Samples | None = None,
        loaded: Callable[[], object] = lambda: None,
    ) -> Figures:
        """Read or write keys at random; then compare all that were touched.

        `loaded` is called in between: what is to be taken of the load alone is taken there.

        Raises:
            WrongAnswer: one of them does not hold what was acknowledged.
        """
        space = Keyspace.make(
            "standing", keys=self.space.keys, value_bytes=self.space.value_bytes, seed=seed
        )
        if use_wrk:
            figures, issued = wrk.run(
                self.server.address, workload, space,
                connections=connections, seconds=seconds, base=self._written,
                rendered_max=0,  # small stores pay for rendering as large ones do
            )  # fmt: skip
            loaded()
            self._settle_wrk(workload, space, issued, connections)
            return figures
        held = Held(space, self.numbers)
        script = {"get": get_anywhere, "put": put_anywhere}[workload]
        lanes = [Lane(space, n, connections, held, self._written) for n in range(connections)]
        figures = drive(
            self.server.address, [script(lane) for lane in lanes], seconds=seconds, samples=samples
        )
        loaded()
        self._settle({key: (value,) for key, value in held.items()})
        return figures

    def verify_some(self, keys: int) -> None:
        """Compare so many keys chosen at random, or all.

        Raises:
            WrongAnswer: one does not hold what was acknowledged.
        """
        chosen = random.Random(keys).sample(range(self.space.keys), min(keys, self.space.keys))
        # In parts, so that no more values are in memory than one part has.
        for first in range(0, len(chosen), VERIFIED_AT_ONCE):
            part = chosen[first : first + VERIFIED_AT_ONCE]
            self._compare({key: (self.space.value(self.numbers[key]),) for key in part})

    def _settle_wrk(
        self, workload: str, space: Keyspace, issued: wrk.Issued, connections: int
    ) -> None:
        """Compare what wrk touched; of what was under way when it stopped, find out which it is."""
        steps = issued.issued if workload == "get" else issued.written
        last = range(max(1, steps - space.keys + 1), steps + 1)
        possible: dict[int, tuple[bytes | None, ...]] = {}
        for step in last:
            key = space.key(step)
            old = space.value(self.numbers[key])
            if workload == "get":
                possible[key] = (old,)
            else:
                older = step - space.keys
                before = space.value(self._written + older) if older > 0 else old
                possible[key] = (space.value(self._written + step), before)
        behind = self._settle(possible)
        if behind > connections:
            raise WrongAnswer(f"{behind} keys lack their last write, of {connections} connections")

    def _settle(self, possible: dict[int, tuple[bytes | None, ...]]) -> int:
        """Compare keys and remember what they hold; return how many do not hold the first value."""
        found = self._compare(possible)
        for key, value in found.items():
            assert value is not None
            self.numbers[key] = int(value[:NUMBER_DIGITS])
            self._written = max(self._written, self.numbers[key])
        # The numbers of writes that are not there are not given again either.
        self._written += READ_CONNECTIONS
        return sum(found[key] != values[0] for key, values in possible.items())

    def _compare(self, possible: dict[int, tuple[bytes | None, ...]]) -> Expected:
        found: Expected = {}
        keys = list(possible)
        shares = [keys[n::READ_CONNECTIONS] for n in range(READ_CONNECTIONS)]
        drive(self.server.address, [read_back_keys(self.space, k, found) for k in shares if k])
        for key, values in possible.items():
            if found[key] not in values:
                raise WrongAnswer(
                    f"{self.space.path(key)} on {self.server.name}: expected "
                    f"{' or '.join(repr(v) for v in values)}, found {found[key]!r}"
                )
        return found


def load_script(lane: Lane) -> Script:
    """Write value 0 to each key of the lane, rendered as it goes."""
    space = lane.space
    body = b"value=" + space.value(0)
    for key in range(lane.lane, space.keys, lane.lanes):
        answer = yield render("PUT", space.path(key), body)
        if not succeeded(answer):
            raise LoadError(f"could not make {space.path(key)}: {answer!r}")


def get_anywhere(lane: Lane) -> Script:
    """Read keys in a random order, rendered as it goes."""
    for key in cycle(shuffled(lane)):
        answer = yield render("GET", lane.space.path(key))
        check_value(lane, key, answer)


def put_anywhere(lane: Lane) -> Script:
    """Overwrite keys in a random order, rendered as it goes."""
    for key, value in zip(cycle(shuffled(lane)), lane.values(), strict=False):
        answer = yield render("PUT", lane.space.path(key), b"value=" + value)
        if succeeded(answer):
            lane.expected[key] = value


def shuffled(lane: Lane) -> Iterable[int]:
    """Return the keys of a lane in an order that the key space's seed chooses."""
    keys = array("q", range(lane.lane, lane.space.keys, lane.lanes))
    random.Random(lane.space.start).shuffle(keys)
    return keys
