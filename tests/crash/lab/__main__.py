"""`scripts/crashlab`: list the experiments, run them, and write down what they found.

Exit status: 0 when every promise held (with `--mutant`: when every bug was caught), 1 otherwise.
SIGINT and SIGTERM stop an experiment, which reports what it has found until then.
"""

import argparse
import http.client
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.lab import EXPERIMENTS
from tests.crash.lab.experiment import ALL, Experiment, Skipped, Stopped, Trial, Violation, counted
from tests.crash.lab.process import NotListening
from tests.crash.lab.report.conditions import conditions
from tests.crash.lab.report.document import NotADocument, document, read
from tests.crash.lab.report.page import page

_DETAIL = 1000  # characters; the files have all of it


@dataclass
class Report:
    """One experiment of the result; report/schema.json describes its fields."""

    name: str
    promise: str
    mutant: str | None
    seed: int
    rounds: int
    unit: str
    command: str = ""
    verdict: str = "held"
    detail: str = ""
    directory: str = ""
    seconds: float = 0.0
    load: tuple[float, float] = (0.0, 0.0)
    figures: dict[str, int | float | str] = field(default_factory=dict)
    distributions: dict[str, dict[str, Any]] = field(default_factory=dict)
    plots: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """It is as it should be, or could not be tried here."""
        return self.verdict in ("held", "caught", "skipped")


def run(
    experiment: Experiment,
    directory: Path,
    *,
    seed: int,
    rounds: int,
    mutant: str | None = None,
    bar: bool = False,
) -> Report:
    """Run an experiment in a directory, which is left when a promise was broken, else removed."""
    label = experiment.name + (f" ({mutant})" if mutant else "")
    directory.mkdir(parents=True, exist_ok=True)
    trial = Trial(directory, seed, rounds, mutant, bar, label)
    report = Report(experiment.name, experiment.promise, mutant, seed, rounds, experiment.unit)
    report.command = _command(experiment, seed, rounds, mutant)
    started, load = time.monotonic(), os.getloadavg()[0]
    try:
        experiment.run(trial)
        report.verdict = "missed" if mutant else "held"
    except Violation as violation:
        report.verdict = "caught" if mutant else "broken"
        report.detail = str(violation)
    except NotListening as error:
        report.verdict = "caught" if mutant else "broken"
        report.detail = f"a server does not start: {error}"
    except (ConnectionError, http.client.HTTPException) as error:
        report.verdict = "caught" if mutant else "broken"
        report.detail = f"the server went while it was spoken to: {error!r}"
    except Skipped as reason:
        report.verdict, report.detail = "skipped", str(reason)
    except Stopped:
        report.verdict, report.detail = (
            "stopped",
            f"after {counted(trial.done, 'rounds')}, which held",
        )
    report.seconds = round(time.monotonic() - started, 1)
    report.load = (round(load, 1), round(os.getloadavg()[0], 1))
    report.rounds, report.figures = trial.rounds, trial.figures
    report.distributions, report.plots = trial.distributions, trial.plots
    if report.good or report.verdict == "stopped":
        shutil.rmtree(directory, ignore_errors=True)
    else:
        report.directory = str(directory)
    return report


def _command(experiment: Experiment, seed: int, rounds: int, mutant: str | None) -> str:
    words = ["scripts/crashlab run", experiment.name, f"--seed {seed}"]
    words += [f"--rounds {rounds}"] if rounds != experiment.rounds else []
    return " ".join([*words, "--mutant"] if mutant else words)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
    if args.verb == "page":
        try:
            sys.stdout.write(page([read(Path(name)) for name in args.results]))
        except (NotADocument, OSError) as error:
            sys.stderr.write(f"crashlab: {error}\n")
            return 2
        return 0
    if args.verb == "list":
        for experiment in EXPERIMENTS.values():
            mutants = ", ".join(experiment.mutants)
            unit = experiment.unit
            is_all = experiment.rounds == ALL
            rounds = f"all {unit}" if is_all else counted(experiment.rounds, unit)
            sys.stdout.write(
                f"{experiment.name:<15} {experiment.promise}\n{'':<15} "
                f"{rounds} ({experiment.quick} with --quick); "
                f"catches: {mutants}\n"
            )
        return 0
    names = list(EXPERIMENTS) if args.names == ["all"] else args.names
    base = Path(args.directory or tempfile.mkdtemp(prefix="crashlab-"))
    base.mkdir(parents=True, exist_ok=True)
    found = conditions(base)
    reports: list[Report] = []
    runs = [
        (EXPERIMENTS[name], mutant)
        for name in names
        for mutant in (EXPERIMENTS[name].mutants if args.mutant else (None,))
    ]
    for experiment, mutant in runs:
        rounds = args.rounds or (experiment.quick if args.quick else experiment.rounds)
        place = base / (experiment.name + (f"-{mutant}" if mutant else ""))
        report = run(
            experiment, place, seed=args.seed, rounds=rounds, mutant=mutant, bar=not args.no_bar
        )
        reports.append(report)
        sys.stdout.write(_text(report))
        sys.stdout.flush()
        if report.verdict == "stopped":
            break
    if not args.directory and not any(report.directory for report in reports):
        base.rmdir()
    result = document(found, [asdict(report) for report in reports])
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    if args.html:
        Path(args.html).write_text(page([result]))
    return 0 if all(report.good for report in reports) else 1


def _text(report: Report) -> str:
    name = report.name + (f" with the bug {report.mutant}" if report.mutant else "")
    figures = ", ".join(f"{key} {value}" for key, value in report.figures.items())
    lines = [
        f"{report.verdict.upper():<8} {name}: {report.promise}",
        f"         {figures or 'no figures'}; seed {report.seed}, "
        f"{counted(report.rounds, report.unit)}, {report.seconds} s",
    ]
    if report.detail:
        lines.append(f"         {report.detail[:_DETAIL]}")
    if report.directory:
        lines.append(f"         what it left is in {report.directory}; look at a store in it with")
        lines.append("         kvdctl verify DIRECTORY")
    return "\n".join(lines) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/crashlab", description="Experiments in crash recovery, on a private server."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="name the experiments and their promises")
    pages = verbs.add_parser("page", help="write one report, as HTML, on what --json has kept")
    pages.add_argument("results", nargs="+", metavar="FILE", help="files that --json has written")
    runs = verbs.add_parser("run", help="run some of them, or all")
    runs.add_argument("names", nargs="+", metavar="NAME", choices=[*EXPERIMENTS, "all"])
    runs.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="default: random")
    runs.add_argument("--rounds", type=int, default=0, help="how many (default: a full run)")
    runs.add_argument("--quick", action="store_true", help="few rounds, to see that it works")
    runs.add_argument("--mutant", action="store_true", help="put in the bugs that must be caught")
    runs.add_argument("--json", metavar="FILE", help="write the results as JSON")
    runs.add_argument("--html", metavar="FILE", help="write a report with plots, one page")
    runs.add_argument("--directory", help="where to work (default: a new temporary directory)")
    runs.add_argument("--no-bar", action="store_true", help="no progress bar")
    return parser


def _stop(*_: object) -> None:
    raise Stopped


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    logging.disable(logging.WARNING)  # recovery tells of each torn tail; here they are the rule
    sys.exit(main())
