"""The trials of the client, at full size unless told otherwise, with their figures."""

import argparse
import shutil
import time
from collections.abc import Callable

from tests.client.trials import recipes, streams
from tests.client.trials.servers import Command, etcd, kvd
from tests.client.trials.streams import Figures

_HISTORY = "--event-history-limit=1000000"

TRIALS: dict[str, Callable[[bool, int], Figures]] = {
    "watch": lambda small, seed: streams.watch(
        kvd(_HISTORY), kills=2 if small else 50, pause_s=0.5, seed=seed
    ),
    "poll": lambda small, seed: streams.watch(
        kvd(_HISTORY, "--extras=false"), kills=2 if small else 50, pause_s=0.5, seed=seed
    ),
    "etcd": lambda small, seed: streams.watch(
        _etcd(),
        kills=2 if small else 20,
        pause_s=0.5,
        seed=seed,
        is_etcd=True,
    ),
    "slow_reader": lambda small, seed: streams.slow_reader(
        kills=2 if small else 50, pause_s=1, seed=seed
    ),
    "follow": lambda small, seed: streams.follow(kills=2 if small else 50, pause_s=0.2, seed=seed),
    "etcd_follow": lambda small, seed: streams.follow(
        _etcd(),
        changes_max=3000,  # its history is 1,000 events long
        kills=2 if small else 20,
        pause_s=0.2,
        seed=seed,
        is_etcd=True,
    ),
    "lock_without_faults": lambda small, seed: recipes.lock(
        processes=8, turns=3 if small else 200, kills=0, stops=0, pause_s=1, seed=seed
    ),
    "lock": lambda small, seed: recipes.lock(
        processes=8, turns=3 if small else 200, **_faults(small), pause_s=2, seed=seed
    ),
    "etcd_lock_without_faults": lambda small, seed: recipes.lock(
        _etcd(), processes=8, turns=3 if small else 200, kills=0, stops=0, pause_s=1, seed=seed
    ),
    "etcd_lock": lambda small, seed: recipes.lock(
        _etcd(),
        processes=8,
        turns=3 if small else 200,
        **_faults(small),
        pause_s=2,
        seed=seed,
    ),
    "counter": lambda small, seed: recipes.counter(
        processes=8, turns=5 if small else 500, kills=1 if small else 20, pause_s=0.5, seed=seed
    ),
    "queue": lambda small, seed: recipes.queue(
        items=20 if small else 1000,
        takers=8,
        deaths=2 if small else 40,
        kills=1 if small else 10,
        pause_s=0.5,
        seed=seed,
    ),
}


def _etcd() -> Command:
    return etcd(shutil.which("etcd") or "etcd")


def _faults(small: bool) -> dict[str, int]:
    return {"kills": 1, "stops": 1} if small else {"kills": 20, "stops": 20}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.client.trials", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"of {', '.join(TRIALS)}; all of them without")
    parser.add_argument("--small", action="store_true", help="seconds each, not minutes")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="of the moments of kills"
    )
    given = parser.parse_args()
    if unknown := set(given.name) - TRIALS.keys():
        parser.error(f"there is no trial {', '.join(unknown)}")
    print(f"seed {given.seed}", flush=True)
    for name, run in TRIALS.items():
        if name in given.name or not given.name:
            figures = run(given.small, given.seed)
            print(f"{name}: {', '.join(f'{k} {v}' for k, v in figures.items())}", flush=True)


if __name__ == "__main__":
    main()
