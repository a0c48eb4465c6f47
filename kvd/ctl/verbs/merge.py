"""Three-way merge of texts, line by line.

What both sides have left alone cuts the text into regions. In each of them a change of one side
is taken, equal changes of both are one, and different ones are a conflict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

YOURS, BEFORE, BETWEEN, THEIRS = "<<<<<<< yours", "||||||| before", "=======", ">>>>>>> theirs"


class Merged(NamedTuple):
    """The result: with conflicts between marks if `is_clean` is false."""

    text: str
    is_clean: bool


def merge(before: str, yours: str, theirs: str) -> Merged:
    """Merge two changes of a text."""
    texts = [text.splitlines(keepends=True) for text in (before, yours, theirs)]
    parts: list[str] = []
    is_clean = True
    for old, mine, other in _regions(*texts):
        if mine in (old, other):
            parts += other
        elif other == old:
            parts += mine
        else:
            is_clean = False
            for mark, lines in ((YOURS, mine), (BEFORE, old), (BETWEEN, other)):
                parts += [f"{mark}\n", *_ended(lines)]
            parts.append(f"{THEIRS}\n")
    return Merged("".join(parts), is_clean)


def has_marks(text: str) -> bool:
    """Return whether a text still has a conflict in it."""
    return any(line.startswith((YOURS, BEFORE, THEIRS)) for line in text.splitlines())


def _ended(lines: Sequence[str]) -> list[str]:
    return [line if line.endswith("\n") else f"{line}\n" for line in lines]


Region = tuple[list[str], list[str], list[str]]


def _regions(before: list[str], yours: list[str], theirs: list[str]) -> Iterator[Region]:
    """Yield the text in regions, in turn what at least one side has changed and what none has."""
    at = (0, 0, 0)
    for old, mine, other, size in [
        *_left_alone(before, yours, theirs),
        (len(before), len(yours), len(theirs), 0),
    ]:
        yield before[at[0] : old], yours[at[1] : mine], theirs[at[2] : other]
        same = before[old : old + size]
        yield same, same, same
        at = (old + size, mine + size, other + size)


def _left_alone(
    before: list[str], yours: list[str], theirs: list[str]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield where runs of lines are that both sides have, in each of the three, and their size."""
    of_yours = SequenceMatcher(None, before, yours, autojunk=False).get_matching_blocks()
    of_theirs = SequenceMatcher(None, before, theirs, autojunk=False).get_matching_blocks()
    first = second = 0
    while first < len(of_yours) and second < len(of_theirs):
        mine, other = of_yours[first], of_theirs[second]
        start, end = max(mine.a, other.a), min(mine.a + mine.size, other.a + other.size)
        if start < end:
            yield start, mine.b + start - mine.a, other.b + start - other.a, end - start
        if mine.a + mine.size < other.a + other.size:
            first += 1
        else:
            second += 1
