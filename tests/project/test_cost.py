"""The cost of requests, counted: a slow-down fails here, on any machine, however busy.

The figures are `python -m bench.cost`'s, which says what they mean; they are the same in every run.
The budgets leave a twentieth of room for what a feature may need.
"""

import json
import subprocess
import sys

import pytest

from tests.support.server import ROOT

KINDS = ("calls", "bytecodes", "peak bytes", "kept")
# In the order of KINDS. Of what is kept, a part is what was made once; a leak is one or more. (But
# the texts of new keys are kept up to a bound that this does not reach.)
BUDGETS = {
    "GET": (11.6, 167, 2_400, 0.9),
    "PUT": (114, 2_010, 2_800, 0.9),
    "PUT, 16 in a batch": (48.5, 783, 1_950, 0.9),
    "PUT with escapes, 16 in a batch": (93.6, 1_251, 1_600, 0.9),
    "compare-and-swap": (133, 2_265, 2_900, 0.9),
    "compare-and-swap, 16 in a batch": (67.4, 1_038, 2_100, 0.9),
    "compare-and-swap by query, 16 in a batch": (80.0, 1_162, 2_150, 0.9),
    "in-order POST": (123, 2_098, 2_800, 2.9),
    "in-order POST, 16 in a batch": (57.9, 873, 1_950, 2.9),
    "PUT and DELETE": (115, 2_040, 1_500, 0.9),
    "PUT and DELETE, 16 in a batch": (50.5, 797, 1_050, 0.9),
    "TTL refresh": (148, 2_445, 2_800, 0.9),
    "TTL refresh, 16 in a batch": (65.1, 1_050, 1_950, 0.9),
    "listing, unchanged": (47.5, 701, 45_000, 0.9),
    "listing, each child": (10.8, 181, 800, 0.9),
    "long poll, asked and told": (46.4, 828, 800, 0.9),
    "stream, told": (5.2, 96.6, 200, 0.9),
}
ADVICE = """over budget: {over}

All figures now, each with its budget:

{table}

`.venv/bin/python -m bench.cost` prints the figures, also on the commit before, for comparison;
`bench/test_layers.py` and `bench/cost/callgrind.py` tell which layer it is. A feature that is worth
its price raises its budget in tests/project/test_cost.py, in a commit that says what for.
"""

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11),
    reason="the budgets were counted with CPython 3.11, others compile to other instructions",
)


@pytest.mark.timeout(300)  # where the store cannot lie in memory, it syncs 1,500 times
def test_no_request_costs_more_than_its_budget() -> None:
    figures = counted()
    assert figures.keys() == BUDGETS.keys()
    over = [
        f"{name} ({kind})"
        for name, budgets in BUDGETS.items()
        for kind, budget in zip(KINDS, budgets, strict=True)
        if figures[name][kind] > budget
    ]
    assert not over, ADVICE.format(over=", ".join(over), table=table(figures))


def counted() -> dict[str, dict[str, float]]:
    """All figures, from a process of its own: whatever other tests do, they are the same."""
    finished = subprocess.run(
        [sys.executable, "-m", "bench.cost", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    figures: dict[str, dict[str, float]] = json.loads(finished.stdout)
    return figures


def table(figures: dict[str, dict[str, float]]) -> str:
    lines = [f"{'each':<45}" + "".join(f"{kind:>22}" for kind in KINDS)]
    for name, row in figures.items():
        cells = zip((row[kind] for kind in KINDS), BUDGETS[name], strict=True)
        shown = (f"{figure:,.6g} of {budget:,.6g}" for figure, budget in cells)
        lines.append(f"{name:<45}" + "".join(f"{cell:>22}" for cell in shown))
    return "\n".join(lines)
