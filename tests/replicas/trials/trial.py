"""One trial: clients, a fault after the other, and what the ledger says of it all."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from tests.replicas.trials.faults import FAULTS, Fault
from tests.replicas.trials.fleet import PATIENCE_S, Fleet
from tests.replicas.trials.ledger import History, Listing, Problem, check
from tests.replicas.trials.load import (
    IMPATIENT_S,
    PATIENT_S,
    ROOT,
    Client,
    Doubter,
    Probe,
    Watcher,
    listing,
)

_CALM_S = 1.0
_LOOK_S = 0.05
_PROBES = 3
_PROBE_PAUSE_S = 0.01
_DOUBTERS = 6
_DOUBT_PAUSE_S = 0.2
# The numbers of clients that write only one key.
_MARKS = 1000


@dataclass(slots=True)
class Outcome:
    """What became of a trial.

    Attributes:
        outages: By the names of faults, the seconds without an acknowledged write of each.
        cleared: How often a watch found its history gone.
    """

    outages: dict[str, list[float]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    requests: int = 0
    acknowledged: int = 0
    open: int = 0
    quorum_reads: int = 0
    events: int = 0
    watched: int = 0
    cleared: int = 0


class Trial:
    """A fleet under load."""

    def __init__(self, fleet: Fleet, *, seed: int, clients: int, pause_s: float) -> None:
        self._fleet = fleet
        self._seed = seed
        self._clients = clients
        self._pause_s = pause_s
        self._addresses = [server.client for server in fleet.servers]
        self._history = History(0)
        self._probes: list[Probe] = []

    async def run(self, faults: Sequence[Fault], say: Callable[[str], None]) -> Outcome:
        """Let faults happen, one after the other."""
        await self._fleet.start()
        self._history.first = (await self._marked()) - 1
        watchers = self._watchers()
        watching = [asyncio.create_task(watcher.run()) for watcher in watchers]
        writing = self._begin()
        outcome = Outcome()
        dice = Random(self._seed)
        try:
            for number, fault in enumerate(faults, 1):
                outage_s = await self._happen(fault, dice)
                outcome.outages.setdefault(fault.name, []).append(outage_s)
                say(f"{number:3}  {fault.name:45} {outage_s:6.2f} s")
                _raise_failures([*watching, *writing])
            await _cancelled(writing)
            self._history.listings = await self._end(watchers)
            await _cancelled(watching)
            self._history.digests = await self._fleet.digests()
        except AssertionError as error:  # a fleet that does not come back: what is known by then
            self._history.failures.append(str(error))
        finally:
            await _cancelled([*writing, *watching])
        self._history.failures += self._fleet.failures()
        self._history.unseen_max = self._fleet.indexes_of_its_own
        return self._counted(outcome, watchers)

    def _watchers(self) -> list[Watcher]:
        """Return a watch of each kind at each server; a stream of etcd shows no history."""
        kinds = (False,) if self._fleet.is_etcd else (False, True)
        return [
            Watcher(number, address, self._history, is_stream=is_stream)
            for number, address in enumerate(self._addresses)
            for is_stream in kinds
        ]

    def _begin(self) -> list[asyncio.Task[None]]:
        kinds: list[tuple[type[Client], float, float]] = [
            (Client, PATIENT_S if number % 2 else IMPATIENT_S, self._pause_s)
            for number in range(self._clients)
        ]
        kinds += [(Probe, IMPATIENT_S, _PROBE_PAUSE_S)] * _PROBES
        kinds += [(Doubter, PATIENT_S, _DOUBT_PAUSE_S)] * _DOUBTERS
        clients = [
            kind(
                number,
                self._addresses,
                self._history,
                self._fleet.traffic,
                seed=self._seed,
                within_s=within_s,
                pause_s=pause_s,
            )
            for number, (kind, within_s, pause_s) in enumerate(kinds)
        ]
        self._probes = [client for client in clients if isinstance(client, Probe)]
        return [asyncio.create_task(client.run()) for client in clients]

    async def _happen(self, fault: Fault, dice: Random) -> float:
        """Let one fault happen and undo it; return the longest time without a written key."""
        await self._fleet.wait_until_healthy()
        await asyncio.sleep(_CALM_S)
        began = time.monotonic()
        try:
            await fault.begin(self._fleet, dice)
        finally:
            await self._fleet.heal()
        await self._fleet.wait_until_healthy()
        self._fleet.traffic.resume()
        await self._written_again()
        began = max(began, self._fleet.traffic.resumed)
        times = sorted(at for probe in self._probes for at in probe.acknowledged)
        spans = [after - max(before, began) for before, after in pairwise(times) if after > began]
        return max(spans, default=0.0)

    async def _written_again(self) -> None:
        healed = time.monotonic()
        while not any(
            probe.acknowledged and probe.acknowledged[-1] > healed for probe in self._probes
        ):
            assert time.monotonic() < healed + PATIENCE_S, "no write succeeds any more"
            await asyncio.sleep(_LOOK_S)

    async def _end(self, watchers: Sequence[Watcher]) -> list[Listing]:
        """Wait until all servers have the same, and the watches have seen it."""
        await self._fleet.heal()
        await self._fleet.wait_until_healthy()
        ends = time.monotonic() + PATIENCE_S
        leases = f"{ROOT}/lease/"
        while True:
            await self._marked()
            listings = await self._listings()
            is_over = not any(key.startswith(leases) for one in listings for key in one.files)
            index = max(one.index for one in listings)
            is_one = all(one.index == index for one in listings)
            if is_over and is_one and all(watcher.index >= index for watcher in watchers):
                return listings
            if time.monotonic() > ends:
                return listings  # the ledger says what differs
            await asyncio.sleep(_LOOK_S)

    async def _listings(self) -> list[Listing]:
        return [await listing(n, address) for n, address in enumerate(self._addresses)]

    async def _marked(self) -> int:
        """Write one key, as a request of the history; return its index."""
        client = Client(
            _MARKS + len(self._history.requests),
            self._addresses,
            self._history,
            self._fleet.traffic,
            seed=self._seed,
            within_s=PATIENT_S,
            pause_s=0,
        )
        ends = time.monotonic() + PATIENCE_S
        while not (index := await client.mark(f"{ROOT}/mark")):
            assert time.monotonic() < ends, "no write succeeds"
        return index

    def _counted(self, outcome: Outcome, watchers: Sequence[Watcher]) -> Outcome:
        requests = self._history.requests
        outcome.requests = len(requests)
        outcome.acknowledged = sum(one.writes and one.is_acknowledged for one in requests)
        outcome.open = sum(one.writes and one.is_open for one in requests)
        outcome.quorum_reads = sum(one.kind == "quorum" and not one.is_open for one in requests)
        outcome.watched = sum(len(one.facts) for one in self._history.watched)
        outcome.events = len({fact.index for one in self._history.watched for fact in one.facts})
        outcome.cleared = sum(watcher.cleared for watcher in watchers)
        outcome.problems = check(self._history)
        if outcome.cleared and not self._fleet.is_etcd:
            outcome.problems.append(("watch", f"{outcome.cleared} times the history was gone"))
        return outcome


def chosen(
    fleet: Fleet, count: int, seed: int, *, only: Sequence[str], without: Sequence[str]
) -> list[Fault]:
    """Return so many faults in random order, each as often as the others."""
    possible = [
        fault
        for fault in FAULTS
        if fault.is_possible(fleet)
        and (not only or any(part in fault.name for part in only))
        and not any(part in fault.name for part in without)
    ]
    assert possible, "there is no such fault here"
    dice = Random(f"{seed} faults")
    turns = [dice.sample(possible, len(possible)) for _ in range(count // len(possible) + 1)]
    return [fault for turn in turns for fault in turn][:count]


def _raise_failures(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
