"""Trials of replicas: faults at full size, with a table of the outages that clients see."""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.replicas.trials.faults import FAULTS
from tests.replicas.trials.fleet import Fleet
from tests.replicas.trials.ledger import counted
from tests.replicas.trials.network import Network, apart
from tests.replicas.trials.trial import Outcome, Trial, chosen

# Of each kind.
_SHOWN = 5
_SHOWN_CHARACTERS = 800


def table(outages: dict[str, list[float]]) -> str:
    """Return the outages of each kind of fault, in the order of the faults."""
    lines = [f"{'fault':45} {'times':>5} {'median s':>8} {'worst s':>8}"]
    for fault in FAULTS:
        if times := outages.get(fault.name):
            lines.append(f"{fault.name:45} {len(times):5} {median(times):8.2f} {max(times):8.2f}")
    return "\n".join(lines)


def report(outcome: Outcome) -> str:
    """Return what became of a trial, for people."""
    problems = counted(outcome.problems)
    return "\n".join(
        [
            table(outcome.outages),
            f"{outcome.requests:,} requests, {outcome.acknowledged:,} writes acknowledged, "
            f"{outcome.open:,} without a response; {outcome.quorum_reads:,} quorum reads; "
            f"{outcome.events:,} events, {outcome.watched:,} seen by watches"
            + (f", whose history was gone {outcome.cleared} times" if outcome.cleared else ""),
            ", ".join(f"{kind} {count}" for kind, count in problems.items()),
            *(
                f"  {kind}: {text[:_SHOWN_CHARACTERS]}"
                for kind in reversed(problems)
                for text in [text for found, text in outcome.problems if found == kind][:_SHOWN]
            ),
        ]
    )


async def run(options: argparse.Namespace, root: Path, network: Network, seed: int) -> Outcome:
    """Run one trial."""
    fleet = Fleet(options.servers, root, network)
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    faults = chosen(fleet, options.faults, seed, only=options.only, without=options.without)
    trial = Trial(fleet, seed=seed, clients=options.clients, pause_s=options.pause)
    try:
        return await trial.run(faults, lambda line: print(line, flush=True))
    finally:
        fleet.stop()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.replicas.trials", description=__doc__)
    parser.add_argument("--servers", choices=("kvd", "kvd-postgres", "etcd"), default="kvd")
    parser.add_argument("--faults", type=int, default=100, metavar="N", help="of each seed")
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="parts of names")
    parser.add_argument("--without", nargs="*", default=[], metavar="TEXT", help="likewise")
    parser.add_argument("--clients", type=int, default=8, metavar="N")
    parser.add_argument("--pause", type=float, default=0.03, metavar="S", help="between requests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where figures go as well")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="data and logs stay there")
    parser.add_argument("--list", action="store_true", help="print the faults")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    if options.list:
        print("\n".join(fault.name for fault in FAULTS))
        return 0
    is_apart = apart()
    if not is_apart:
        print("no network namespaces here: nothing is cut off", flush=True)
    failed, figures = 0, []
    for seed in options.seed:
        began = time.monotonic()
        print(f"seed {seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="kvd-trial-") as scratch:
            root = (options.keep or Path(scratch)) / f"seed{seed}"
            root.mkdir(parents=True)
            network = Network(is_apart=is_apart)
            try:
                outcome = asyncio.run(run(options, root, network, seed))
            finally:
                network.close()
        print(report(outcome) + f"\n{time.monotonic() - began:.0f} s", flush=True)
        failed += bool(outcome.problems)
        counts = counted(outcome.problems)
        figures.append({"seed": seed, "outages": outcome.outages, "problems": counts})
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    sys.exit(main())
