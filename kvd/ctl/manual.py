"""The manual that is installed with the program: the pages of `kvd/manual/`, by topic.

The first line of a page is `# Title: summary`; the topic is the name of its file. The pages are
Markdown with one row a line in tables, so on a terminal they are wrapped to its width.
"""

import re
import textwrap
from collections.abc import Iterator
from importlib import resources

_PAGES = resources.files("kvd") / "manual"
_SUFFIX = ".md"
_WIDTH_MIN = 40
_EXAMPLE_MAX = 76
# Where a paragraph ends: at an empty line, a heading, an example, a row, the next item of a list.
_APART = re.compile(r"$|#|    |\|")
_ITEM = re.compile(r"(?:-|\d+\.) ")


def topics() -> dict[str, str]:
    """Return the summary of each page by its topic, in alphabetical order."""
    names = sorted(page.name for page in _PAGES.iterdir() if page.name.endswith(_SUFFIX))
    return {topic: _summary(page(topic)) for topic in (n.removesuffix(_SUFFIX) for n in names)}


def page(topic: str) -> str:
    """Return the text of a page.

    Args:
        topic: one of `topics()`.
    """
    return (_PAGES / f"{topic}{_SUFFIX}").read_text(encoding="utf-8")


def examples(verb: str) -> list[str]:
    """Return the examples of a verb of kvdctl, without their outputs: command lines of a row.

    Args:
        verb: its words, such as `kvdctl role grant`.
    """
    first, *inner = verb.split()[1:]
    _, _, section = page("kvdctl").partition(f"\n## `kvdctl {first}")
    lines = section.partition("\n## ")[0].splitlines()
    called = re.compile(rf"    (\$ (?:.*\| )?kvdctl (?:-\S+ \S+ )*{' '.join([first, *inner])}\b.*)")
    found = [match[1] for line in lines if (match := called.fullmatch(line))]
    return [line for line in found if len(line) <= _EXAMPLE_MAX]


def wrapped(text: str, width: int) -> str:
    """Return a page in lines of at most this width, except examples, which stay as they are.

    A table becomes the name of its first column and, for each row, the first cell and below it the
    other cells, each with the name of its column where there are several.
    """
    width = max(width, _WIDTH_MIN)
    lines: list[str] = []
    header: list[str] = []
    for block in _blocks(text):
        if not block.startswith("|"):
            header = []
            lines += _wrap(block, width)
            continue
        cells = [cell.strip() for cell in block.strip("|").split("|")]
        if not header:
            header = cells
            lines.append(": ".join(header) if len(header) == 2 else f"{header[0]}:")
        elif not cells[0].startswith("---"):
            lines += _row(header, cells, width)
    return "\n".join(lines) + "\n"


def _row(header: list[str], cells: list[str], width: int) -> Iterator[str]:
    yield from _fill(cells[0], width, "  ")
    for name, cell in zip(header[1:], cells[1:], strict=True):
        if cell not in ("", "-"):
            yield from _fill(cell if len(cells) == 2 else f"{name}: {cell}", width, "    ")


def _blocks(text: str) -> Iterator[str]:
    """Yield the lines of a page, those of one paragraph or item joined to one."""
    block = ""
    for line in text.splitlines():
        if block and not _APART.match(line) and not _ITEM.match(line):
            block += f" {line.strip()}"
            continue
        if block:
            yield block
            block = ""
        if _APART.match(line):
            yield line
        else:
            block = line
    if block:
        yield block


def _wrap(block: str, width: int) -> list[str]:
    if block.startswith(("    ", "#")) or not block:
        return [block]
    mark = _ITEM.match(block)
    if mark is None:
        return _fill(block, width, "")
    lines = _fill(block[mark.end() :], width, " " * mark.end())
    return [mark[0] + lines[0].lstrip(), *lines[1:]]


def _fill(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _summary(text: str) -> str:
    return text.partition("\n")[0].partition(": ")[2]
