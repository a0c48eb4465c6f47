"""The part of each module that its own test file covers: `scripts/coverage [FOLDER | FILE]...`.

The test file of `kvd/core/clock.py` is `tests/core/test_clock.py`, that of `storage/wal/wal.py` is
`tests/storage/wal/test_wal.py`. Lines that servers run in processes of their own count too. What a
module's tests cover only through other modules' files is no fault, but such a file is where a
reader looks first: this is a report, and no test.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.server import ROOT

PACKAGES = ("kvd", "storage")


class Line(NamedTuple):
    """The report on a module; `percent` is None where it has no test file of its own."""

    percent: float | None
    module: str
    missing: str


def modules(places: list[str]) -> Iterator[Path]:
    """The modules below folders, in the order of their paths; all without any."""
    for place in places or PACKAGES:
        path = ROOT / place
        found = [path] if path.is_file() else sorted(path.rglob("*.py"))
        yield from (one for one in found if one.name not in ("__init__.py", "__main__.py"))


def own_test(module: Path) -> Path:
    """The place of the test of a module."""
    within = module.relative_to(ROOT)
    room = within.parent.relative_to("kvd") if within.parts[0] == "kvd" else within.parent
    return ROOT / "tests" / room / f"test_{module.name}"


def measured(module: Path, test: Path) -> Line:
    """Run a test file, and return what it covers of a module."""
    name = str(module.relative_to(ROOT))
    with tempfile.TemporaryDirectory(prefix="kvd-coverage-") as directory:
        settings = Path(directory) / "coveragerc"
        settings.write_text(
            f"[run]\ndata_file = {directory}/data\nparallel = true\npatch = subprocess\n"
            f"sigterm = true\ninclude = {module.resolve()}\n"
        )
        coverage = [sys.executable, "-m", "coverage"]
        environment = os.environ | {"COVERAGE_RCFILE": str(settings)}

        def run(*arguments: str) -> int:
            return subprocess.run(
                [*coverage, *arguments], cwd=ROOT, env=environment, capture_output=True, check=False
            ).returncode

        pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=quick")
        is_good = run("run", *pytest, str(test)) == 0
        run("combine")
        report = Path(directory) / "report.json"
        run("json", "-o", str(report))
        if not report.exists():
            return Line(0.0, name, "none of it is imported")
        ((_, found),) = json.loads(report.read_text())["files"].items()
    missing = ", ".join(map(str, found["missing_lines"][:12]))
    return Line(
        found["summary"]["percent_covered"], name, missing if is_good else f"FAILED; {missing}"
    )


def main() -> None:
    lines = []
    for module in modules(sys.argv[1:]):
        test = own_test(module)
        name = str(module.relative_to(ROOT))
        line = measured(module, test) if test.exists() else Line(None, name, f"no {test.name}")
        print(f"{name}: {line.missing or 'all'}", file=sys.stderr, flush=True)
        lines.append(line)
    for percent, name, missing in sorted(lines, key=lambda one: -(one.percent or 0.0)):
        print(f"{'-' if percent is None else f'{percent:.0f}%':>5}  {name}  {missing}")


if __name__ == "__main__":
    main()
