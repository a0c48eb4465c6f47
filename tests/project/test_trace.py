"""Calls of one request through the code: the golden traces in tests/project/traces.

They are compared by the names and the files of functions. `scripts/trace` prints such a trace, and
`scripts/trace --renew` writes the golden ones.
"""

import subprocess
import sys

import pytest

from bench.cost.in_process import in_memory
from bench.cost.trace import GOLDEN, GOLDEN_REQUESTS, TARGET
from tests.support.kernel_sync import needs_rings
from tests.support.server import ROOT

ADVICE = """the calls of `{request}` have changed.

If the change is meant, renew the golden traces with

    scripts/trace --renew

and commit tests/project/traces with the change, so that its diff shows what a request does now.
"""

pytestmark = [
    pytest.mark.skipif(in_memory() is None, reason="on a slow disk a write makes other calls"),
    needs_rings,  # without them others sync the log
]


def traced(request: str) -> subprocess.CompletedProcess[str]:
    """The output of `scripts/trace`, from a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bench.cost.trace", *request.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize("name", GOLDEN_REQUESTS)
def test_a_request_makes_the_calls_of_its_golden_trace(name):
    request = GOLDEN_REQUESTS[name]
    expected = (GOLDEN / f"{name}.txt").read_text().splitlines()
    found = traced(request).stdout.splitlines()[: len(expected)]
    assert found == expected, ADVICE.format(request=request)


def test_a_put_keeps_to_few_files_and_crossings():
    closing = (GOLDEN / "PUT.txt").read_text().splitlines()[-1]
    counts = {name: int(n) for n, _, name in (part.partition(" ") for part in closing.split(", "))}
    assert {name: counts[name] for name in TARGET if counts[name] > TARGET[name]} == {}
