"""Texts of the log for tests, held to the manual: its table "Lines of the log" is their place."""

import re
from functools import cache

from tests.support.documents import MANUAL


@cache
def rows_of_the_log() -> list[str]:
    """The first cell of each row of the table; words in capitals are placeholders."""
    text = (MANUAL / "operations.md").read_text()
    _, _, section = text.partition("\n## Lines of the log\n")
    return re.findall(r"^\| `([^`]+)`", section.partition("\n## ")[0], re.M)


def log_text(part: str) -> str:
    """Return part of a line of the log, after checking that it is in the manual."""
    assert any(part in row for row in rows_of_the_log()), f"the manual has no row with {part!r}"
    return part
