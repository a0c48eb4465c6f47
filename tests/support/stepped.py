"""A kvd whose machine's clock is wrong by what a file says, read at each look: to step it at will.

CLOCK_FILE=FILE python -m tests.support.stepped FLAGS...
"""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from kvd.__main__ import main
from kvd.core import clock


def _time_ns() -> int:
    return time.time_ns() + int(Path(os.environ["CLOCK_FILE"]).read_text())


def step(file: Path, wrong_ns: int) -> None:
    """Have the clock be wrong by so much from now on."""
    new = file.with_name("new")
    new.write_text(str(wrong_ns))
    new.rename(file)


if __name__ == "__main__":
    clock.time = SimpleNamespace(**{**vars(time), "time_ns": _time_ns})  # type: ignore[assignment]
    sys.exit(main())
