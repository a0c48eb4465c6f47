"""The manual that is installed with the program: the pages of `kvd/manual/`, by topic.

The first line of a page is `# Title: summary`; the topic is the name of its file.
"""

from importlib import resources

_PAGES = resources.files("kvd") / "manual"
_SUFFIX = ".md"


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


def _summary(text: str) -> str:
    return text.partition("\n")[0].partition(": ")[2]
