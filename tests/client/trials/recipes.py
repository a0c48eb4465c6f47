"""Trials of locks, counters and queues: many processes, while servers and processes are killed."""

import contextlib
import itertools
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from kvd import Client
from kvd.client import HistoryLost, KvdError
from tests.client.trials.servers import PATIENCE_S, Command, killed, kvd, serving
from tests.client.trials.streams import Figures
from tests.client.trials.workers import Worker

TTL_S = 3
_KVD = kvd("--event-history-limit=1000000")


@contextlib.contextmanager
def working(kind: str, url: str, processes: int, turns: int) -> Iterator[list[Worker]]:
    """Some workers, of which none is left at the end."""
    workers = [Worker(kind, url, turns, TTL_S) for _ in range(processes)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()


def stopped(workers: list[Worker], stops: int, dice: random.Random) -> None:
    """Suspend one worker after the other for longer than its TTL."""
    for _ in range(stops):
        running = [worker for worker in workers if worker.is_running()]
        if not running:
            return
        one = dice.choice(running)
        one.signal(signal.SIGSTOP)
        time.sleep(TTL_S + dice.uniform(0.5, 1.5))
        one.signal(signal.SIGCONT)
        time.sleep(dice.uniform(0, 0.5))


def lock(
    command: Command = _KVD,
    *,
    processes: int,
    turns: int,
    kills: int,
    stops: int,
    pause_s: float,
    seed: int,
) -> Figures:
    """A register that is written with the fence never goes back.

    Without faults there are never two holders, and each gets the lock in the order of its entry.
    """
    dice = random.Random(seed)
    began = time.monotonic()
    with serving(command) as server, Client(server.url, timeout=30) as client:
        with working("lock", server.url, processes, turns) as workers:
            with killed(server, kills, pause_s, random.Random(seed)):
                stopped(workers, stops, dice)
            for worker in workers:
                worker.wait()
        said = [what for worker in workers for what in worker.said]
        fences = _written_to_register(client, said)
        assert fences == sorted(fences), "the register went back"
        grants = sorted((what["fence"], what) for what in said if "fence" in what)
        assert len({fence for fence, _ in grants}) == len(grants) == processes * turns
        held = [what for _, what in grants]
        overlaps = sum(one["ended"] > other["began"] for one, other in itertools.pairwise(held))
        if not kills and not stops:
            assert overlaps == 0, "two have held it at once, or not in the order of their entries"
            assert len(fences) == len(grants)
        # What the dead have left ends with its TTL.
        wait_for(lambda: not len(client.ls("/lock")))
    return {
        "processes": processes,
        "turns": len(grants),
        "kills": server.kills,
        "suspended": stops,
        "written": len(fences),
        "lost while held": sum(not what["held"] for what in held),
        "overlaps": overlaps,
        "errors": sum("error" in what for what in said),
        "seconds": round(time.monotonic() - began),
    }


def _written_to_register(client: Client, said: list[dict[str, Any]]) -> list[int]:
    """Its values in the order of their writes: all of them, or those acknowledged to workers.

    The history of an etcd does not reach back to the first one.
    """
    last = client.set("/register", "end").index
    try:
        with client.watch("/register", since=1, timeout=PATIENCE_S) as watch:
            events = itertools.takewhile(lambda event: event.index < last, watch)
            return [int(event.node.value or 0) for event in events]
    except HistoryLost:
        written = [(what["written"], what["fence"]) for what in said if what.get("written")]
        return [fence for _, fence in sorted(written)]


def counter(*, processes: int, turns: int, kills: int, pause_s: float, seed: int) -> Figures:
    """The sum is between what was acknowledged, and that with what is not known."""
    began = time.monotonic()
    with serving(kvd()) as server:
        with working("counter", server.url, processes, turns) as workers:
            with killed(server, kills, pause_s, random.Random(seed)):
                pass
            for worker in workers:
                worker.wait()
        said = [what for worker in workers for what in worker.said]
        unknown = sum("unknown" in what for what in said)
        acknowledged = processes * turns - unknown
        with Client(server.url) as client:
            total = client.counter("/counter").value
    assert acknowledged <= total <= acknowledged + unknown
    return {
        "processes": processes,
        "kills": server.kills,
        "acknowledged": acknowledged,
        "unknown": unknown,
        "sum": total,
        "seconds": round(time.monotonic() - began),
    }


def queue(
    *, items: int, takers: int, deaths: int, kills: int, pause_s: float, seed: int
) -> Figures:
    """Each item is handled at least once, and none is left, while takers and the server die."""
    dice = random.Random(seed)
    began = time.monotonic()
    ids: list[str] = []
    retired: list[Worker] = []
    with (
        serving(kvd()) as server,
        Client(server.url, timeout=30) as client,
        working("queue", server.url, takers, 0) as workers,
    ):
        with killed(server, kills, pause_s, random.Random(seed)):
            producer = threading.Thread(target=_put, args=[server.url, items, ids])
            producer.start()
            for _ in range(deaths):
                time.sleep(dice.uniform(0, 2 * pause_s))
                place = dice.randrange(takers)
                retired.append(workers[place])
                workers[place].kill()
                workers[place] = Worker("queue", server.url, 0, TTL_S)
            producer.join()
        # On a busy machine it takes its time; each item that goes gives some more.
        left = len(list(_left(client)))
        while left:
            before = left
            wait_for(lambda: len(list(_left(client))) < before)  # noqa: B023 -- called here
            left = len(list(_left(client)))
    said = [what for worker in (*workers, *retired) for what in worker.said]
    handled = [what["item"] for what in said if "item" in what]
    missing = set(ids) - set(handled)
    assert not missing, f"{len(missing)} were never handled"
    return {
        "items": len(ids),
        "takers killed": deaths,
        "kills": server.kills,
        "handled": len(handled),
        "twice": len(handled) - len(set(handled)),
        "seconds": round(time.monotonic() - began),
    }


def _put(url: str, items: int, ids: list[str]) -> None:
    with Client(url, timeout=30) as client:
        while len(ids) < items:
            # One of which nothing is known is put again, as another one.
            with contextlib.suppress(KvdError):
                ids.append(client.queue("/queue").put(f"item {len(ids)}"))


def _left(client: Client) -> Iterator[str]:
    for directory in ("/queue", "/queue/_claims"):
        with contextlib.suppress(KeyError):
            yield from (node.key for node in client.ls(directory))


def wait_for(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)
