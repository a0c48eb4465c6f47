"""The laboratory's experiments, each in short, and each against the bugs that it must catch.

`scripts/crashlab` runs them with a progress bar and a report; `-m durability_full` at full size.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.lab import EXPERIMENTS, lives
from tests.crash.lab.__main__ import Report, main, run
from tests.crash.lab.experiment import Experiment, Stopped, Violation
from tests.crash.lab.report.document import objection
from tests.support.server import ROOT

MUTANTS = [(name, bug) for name, experiment in EXPERIMENTS.items() for bug in experiment.mutants]


@pytest.fixture(autouse=True)
def others_see_their_logs() -> Iterator[None]:
    """What an experiment does not want to hear of, other tests of this process do."""
    yield
    logging.disable(logging.NOTSET)


def try_out(
    experiment: Experiment, place: Path, rounds: int, bug: str | None = None, attempt: int = 0
) -> Report:
    # The same draw each time: new ones are what the full sizes and `scripts/crashlab` are for.
    seed = 20261124 + attempt
    report = run(experiment, place / "lab", seed=seed, rounds=rounds, mutant=bug)
    if report.verdict == "skipped":
        pytest.skip(report.detail)
    return report


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_promise_holds(name, tmp_path):
    report = try_out(EXPERIMENTS[name], tmp_path, EXPERIMENTS[name].quick)
    assert report.verdict == "held", report.detail or report
    assert report.figures


@pytest.mark.parametrize(("name", "bug"), MUTANTS)
def test_the_bug_is_caught(name, bug, tmp_path):
    # So few rounds are drawn that one try may miss it.
    for attempt in range(3):
        rounds = EXPERIMENTS[name].quick
        report = try_out(EXPERIMENTS[name], tmp_path / str(attempt), rounds, bug, attempt)
        if report.verdict == "caught":
            return
    raise AssertionError(report.detail or report)


_CHANGES = """
import inspect, os, sys
import kvd.server
from tests.crash.lab.mutant import MUTANTS

def names():
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "kvd"]
    types = [v for module in modules for v in vars(module).values() if isinstance(v, type)]
    places = [*modules, *(t for t in types if t.__module__.startswith("kvd"))]
    return {f"{p.__name__}.{name}": what for p in places for name, what in vars(p).items()}

def takes(new, old):
    given = [p for p in inspect.signature(old).parameters.values() if p.default is p.empty]
    by_name = {p.name: 0 for p in given if p.kind is p.KEYWORD_ONLY}
    inspect.signature(new).bind(*[0 for p in given if p.kind is p.POSITIONAL_OR_KEYWORD], **by_name)

for mutant, put_in in MUTANTS.items():
    if os.fork() == 0:
        before = names()
        put_in()
        for name, what in names().items():
            old = before.get(name)
            if name not in before:
                print(mutant, "adds", name, flush=True)
            elif inspect.isfunction(what) and inspect.isfunction(old) and what is not old:
                try:
                    takes(what, old)
                except TypeError as error:
                    print(mutant, "in", name, "takes other arguments:", error, flush=True)
        os._exit(0)
    os.wait()
"""


def test_a_bug_replaces_only_what_there_is():
    # What has moved elsewhere is replaced in vain: the server is whole, and nothing is caught. What
    # takes other arguments is a bug of another kind, which anything catches.
    done = subprocess.run(
        [sys.executable, "-c", _CHANGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not done.stdout


@pytest.mark.durability_full
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_promise_holds_at_full_size(name, tmp_path):
    report = try_out(EXPERIMENTS[name], tmp_path, EXPERIMENTS[name].rounds)
    assert report.verdict == "held", report.detail or report


def test_the_command_writes_its_results(tmp_path, capsys):
    results, html = tmp_path / "results.json", tmp_path / "report.html"
    status = main(
        [
            *("run", "truncate", "--rounds", "20", "--seed", "7", "--no-bar"),
            *("--json", str(results), "--html", str(html), "--directory", str(tmp_path / "work")),
        ]
    )
    assert status == 0
    found = json.loads(results.read_text())
    assert objection(found) == ""
    (report,) = found["experiments"]
    assert (report["verdict"], report["seed"], report["rounds"]) == ("held", 7, 20)
    assert report["command"] == "scripts/crashlab run truncate --seed 7 --rounds 20"
    assert "HELD     truncate" in capsys.readouterr().out
    assert "truncate" in html.read_text()
    assert main(["page", str(results), str(results)]) == 0
    assert capsys.readouterr().out.count("A log cut at any byte opens") == 2
    assert not (tmp_path / "work" / "truncate").exists()


def test_a_broken_promise_leaves_the_data_and_fails(tmp_path):
    def break_it(trial):
        (trial.directory / "data").mkdir()
        trial.check(False, "it is broken")

    experiment = Experiment("broken", "nothing", (), 1, 1, "rounds", break_it)
    report = run(experiment, tmp_path / "lab", seed=1, rounds=1)
    assert (report.verdict, report.detail, report.good) == ("broken", "it is broken", False)
    assert (Path(report.directory) / "data").is_dir()


def test_a_run_that_is_stopped_says_how_far_it_came(tmp_path):
    def stop_it(trial):
        trial.progress(3)
        raise Stopped

    experiment = Experiment("stopped", "nothing", (), 9, 1, "rounds", stop_it)
    report = run(experiment, tmp_path / "lab", seed=1, rounds=9)
    assert (report.verdict, report.good) == ("stopped", False)
    assert report.detail == "after 3 rounds, which held"


def test_a_refused_write_ends_the_churn(tmp_path, monkeypatch):
    def refuse(port, requests):
        raise Violation("a request is answered by 500")

    monkeypatch.setattr(lives, "exchange", refuse)
    report = run(EXPERIMENTS["churn"], tmp_path / "lab", seed=1, rounds=400)
    assert (report.verdict, report.detail) == ("broken", "a request is answered by 500")


def test_the_list_names_every_experiment_and_its_bugs():
    command = [sys.executable, "-m", "tests.crash.lab", "list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name, experiment in EXPERIMENTS.items():
        assert name in listed
        assert all(bug in listed for bug in experiment.mutants)
