"""The trials at a small size; `python -m tests.client.trials` runs them at full size."""

import subprocess
import sys

from tests.client.trials import recipes
from tests.client.trials.__main__ import TRIALS
from tests.support.server import ROOT


def test_a_register_that_is_written_with_the_fence_never_goes_back():
    figures = recipes.lock(processes=2, turns=10, kills=1, stops=0, pause_s=0.5, seed=1)
    assert (figures["turns"], figures["kills"]) == (20, 1)


def test_a_counter_has_what_was_acknowledged():
    figures = recipes.counter(processes=2, turns=20, kills=1, pause_s=0.3, seed=1)
    assert figures["kills"] == 1


def test_each_item_of_a_queue_is_handled():
    figures = recipes.queue(items=20, takers=2, deaths=1, kills=1, pause_s=0.3, seed=1)
    assert (figures["items"], figures["takers killed"]) == (20, 1)


def test_the_command_names_all_trials():
    ended = subprocess.run(
        [sys.executable, "-m", "tests.client.trials", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ", ".join(TRIALS) in " ".join(ended.stdout.split())
