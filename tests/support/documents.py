"""The documents of the repository: their examples, and what has an entry in the manual."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.support.server import ROOT

MANUAL = ROOT / "kvd" / "manual"
PAGES = sorted(MANUAL.glob("*.md"))
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "build" for part in path.relative_to(ROOT).parts)
    and path.parent != ROOT / "kvd" / "storage"
)


def examples(page: Path) -> list[tuple[str, str]]:
    """The commands of a page, and what they print.

    An example is an indented line that begins with `$`; what follows it, indented, is its output.
    """
    found: list[tuple[str, list[str]]] = []
    is_output = False
    for line in page.read_text().splitlines():
        if line.startswith("    $ "):
            found.append((line[6:], []))
            is_output = True
        elif line and not line.startswith("    "):
            is_output = False
        elif is_output:
            found[-1][1].append(line[4:])
    return [(command, "\n".join(lines).strip()) for command, lines in found]


def entries(pattern: str) -> Counter[str]:
    """The number of entries in the manual for each name that matches.

    That is a heading, or the first cell of a row, that begins with the name.
    """
    found: Counter[str] = Counter()
    for page in PAGES:
        for line in page.read_text().splitlines():
            heading = re.match(r"#+ (`.*)", line)
            row = re.match(r"\| (`[^|]*)\|", line)
            for name in re.findall(r"`([^`]*)`", (heading or row or [""])[0]):
                if match := re.match(pattern, name):
                    found[match[1]] += 1
    return found


def once(names: Iterable[str]) -> Counter[str]:
    return Counter(dict.fromkeys(names, 1))
