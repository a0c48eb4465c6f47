"""The words of docstrings, comments, log lines, help texts and names: the field's terms.

Each pattern comes with what to write instead. The summary line of a docstring, the message of a log
call and the text of a flag are searched for all of `TERSE`, every line of a docstring and every
comment for `ANYWHERE`.
"""

import ast
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

ANYWHERE = {
    r"\b(?:who|whom|whoever|whomever)\b": "name the client, the caller, the thread; or use `that`",
    r"\b(?:nobody|somebody|anybody|everybody)(?:'s)?\b": "no client, a caller, every thread",
}
TERSE = ANYWHERE | {
    r"\b(?:is|are|was|were|be|been) told\b": "receives, is notified, is reported",
    r"\basks\b": "requests, checks, queries",
    r"\b(?:stands?|stood)\b": "is, is stored, is written",
    r"\bby (?:it|them)sel(?:f|ves)\b": "automatically; alone",
    r"\bon (?:its|their) way\b": "in flight, pending",
    r"\bbeside\b": "next to, with, in addition to",
    r"\banew\b": "again",
}
# A property is a noun, "Whether ..." too; a module is a thing.
OF_A_MODULE = {r"^(?:Who|What|How|Where|Whether|When)\b": "begin with a noun"}
OF_A_DEFINITION = {r"^(?:Who|What|How|Where)\b": "begin with an imperative or a noun"}

IN_NAMES = {
    "tell": "deliver, respond, report, show",
    "tells": "delivers, shows, prints",
    "telling": "delivery, response",
    "told": "received, reported, shown",
    "who": "user, client, caller",
    "whom": "user, client, caller",
    "whoever": "any client",
    "nobody": "no client, no user",
    "nobodys": "of no user",
    "somebody": "a client",
    "anybody": "any client",
    "everybody": "every client",
    "anew": "again",
}
"""Words that no name of a function, class, variable or argument has."""
# What a file must match for a search of its syntax tree to find anything: few do, and to parse all
# takes ten times as long. A text may be written in two parts, so white space is any here.
MAYBE_IN_TEXTS = re.compile(
    "|".join(
        [
            *(pattern.replace(" ", r"""[\s"'f]+""") for pattern in TERSE),
            *(pattern.replace("^", r'"""') for pattern in (OF_A_MODULE | OF_A_DEFINITION)),
        ]
    ),
    re.IGNORECASE,
)
MAYBE_IN_NAMES = re.compile(rf"(?<![a-z])(?:{'|'.join(IN_NAMES)})(?![a-z])")

LOG_CALLS = {"debug", "info", "warning", "error", "exception", "critical"}
FLAG_TEXT = 3
"""The argument of `Flag` that is its help."""

FOLDERS = ("kvd", "storage", "bench", "tests/support")


def sources(*folders: str) -> list[Path]:
    found = {path for folder in folders for path in (ROOT / folder).glob("**/*.py")}
    return sorted(path for path in found if not path.is_relative_to(ROOT / "kvd" / "storage"))


def texts(path: Path) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Each text of a file with its line and the patterns that it must not match."""
    text = path.read_text()
    if not MAYBE_IN_TEXTS.search(text):
        return
    if any(re.search(pattern, text, re.IGNORECASE) for pattern in ANYWHERE):
        for token in tokenize.generate_tokens(StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string.lstrip("# "), ANYWHERE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            start = OF_A_MODULE if isinstance(node, ast.Module) else OF_A_DEFINITION
            for number, statement in enumerate(node.body):
                # The first is that of the node itself, others are of attributes and constants.
                yield from docstring(statement, TERSE if number else TERSE | start)
        elif isinstance(node, ast.Call):
            yield from ((text.lineno, text.value, TERSE) for text in messages(node))


def docstring(
    node: ast.stmt, of_summary: dict[str, str]
) -> Iterator[tuple[int, str, dict[str, str]]]:
    if isinstance(node, ast.Expr) and is_text(node.value):
        for number, line in enumerate(node.value.value.splitlines()):
            yield node.lineno + number, line, ANYWHERE if number else of_summary


def messages(call: ast.Call) -> list[ast.Constant]:
    """The texts of a call that operators read."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    found = [keyword.value for keyword in call.keywords if keyword.arg in ("help", "description")]
    if name in LOG_CALLS:
        found += call.args[:1]
    elif name == "Flag":
        found += call.args[FLAG_TEXT : FLAG_TEXT + 1]
    return [text for text in found if is_text(text)]


def is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_the_words_are_those_of_databases_and_servers():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.strip()}\n    {match[0]!r}: {advice}"
        for path in sources(*FOLDERS)
        for line, text, patterns in texts(path)
        for pattern, advice in patterns.items()
        if (match := re.search(pattern, text, re.IGNORECASE))
    ]
    assert not found, "\n".join([f"{len(found)} texts to reword:", *found])


def names(path: Path) -> Iterator[tuple[int, str]]:
    """The names that a file gives, with their lines; none if all its words are good."""
    text = path.read_text()
    if not MAYBE_IN_NAMES.search(spaced(text)):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def words(name: str) -> list[str]:
    """The words of a name: of `is_told`, and of `TellAll`."""
    return spaced(name).split("_")


def test_names_are_in_the_same_words():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}\n    {word!r}: {IN_NAMES[word]}"
        for path in sources(*FOLDERS, "tests")
        for line, name in names(path)
        for word in words(name)
        if word in IN_NAMES
    ]
    assert not found, "\n".join([f"{len(found)} names to change:", *found])
