"""Instructions of the processor per request, counted by valgrind: `python -m bench.cost.callgrind`.

Finer than bytecodes, for it sees what C code costs (LMDB, checksums, copies, asyncio, system calls
but for what the kernel does in them), and as little disturbed by what else the machine does. Each
case of `bench.cost` runs twice in a process of its own under callgrind, with few and with many
steps; the difference is the steps' own. Only the server's threads count. A case takes a minute.

    .venv/bin/python -m bench.cost.callgrind "GET" "PUT" [--keep DIRECTORY]

`callgrind_annotate DIRECTORY/GET-many-02` then tells where the loop's thread spent them.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.cost.cases import CASES, Case
from bench.load.servers import CHECKOUT

FEW, MANY = 20, 120
TOTAL = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)
_CLIENT = "-01"
"""The thread that valgrind numbers first is the caller's."""


def instructions(case: Case, steps: int, out: Path) -> int:
    """Return what the server's threads executed in a whole run of so many steps."""
    subprocess.run(
        [
            "valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}",
            sys.executable, "-m", "bench.cost", "--run", case.name, str(steps),
        ],
        cwd=CHECKOUT, check=True, capture_output=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )  # fmt: skip
    total = 0
    for path in out.parent.glob(out.name + "-*"):
        if not path.name.endswith(_CLIENT):
            found = TOTAL.findall(path.read_text())
            total += int(found[-1]) if found else 0
    return total


def per_request(case: Case, directory: Path) -> float:
    """Return instructions for each request (child, watcher) of a case."""
    name = re.sub(r"\W+", "-", case.name)
    few = instructions(case, FEW, directory / f"{name}-few")
    many = instructions(case, MANY, directory / f"{name}-many")
    return (many - few) / (MANY - FEW) / case.per


def main() -> int:
    """Count the cases that are named, or all."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(prog="python -m bench.cost.callgrind", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(names)}")
    parser.add_argument("--keep", type=Path, help="an empty directory for callgrind's files")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not shutil.which("valgrind"):
        parser.error("valgrind is not on the PATH (Debian: apt-get install valgrind)")
    with tempfile.TemporaryDirectory(prefix="kvd-callgrind-") as made:
        directory = options.keep or Path(made)
        directory.mkdir(exist_ok=True)
        for case in CASES:
            if not options.cases or case.name in options.cases:
                print(f"{case.name}: {per_request(case, directory):,.0f} instructions", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
