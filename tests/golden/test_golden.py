"""Plays the scripts of tests/golden (their format is in the README there) on fresh servers."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.server import Answer, Server, Watch

SCRIPTS = sorted((Path(__file__).parent.parent / "golden").glob("*.txt"))

_REQUEST = re.compile(r"(?:&(?P<name>\w+) |(?P<times>\d+)x )?> (?P<method>[A-Z]+) (?P<target>\S+)")
_TOKEN = re.compile(
    r"\{(?P<kind>time|ttl|id|number|duration)(?P<value>[+ ]\d+)?(?::(?P<name>\w+))?\}"
)
_PATTERNS = {
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{0,8}[1-9])?(?:Z|[+-]\d\d:\d\d)",
    "ttl": r"\d+",
    "id": r"[1-9a-f][0-9a-f]{0,15}",
    "number": r"\d+",
    "duration": r"(?:\d+h)?(?:\d+m)?[0-9.]+(?:s|ms|µs|ns)",
}
# How far a server's clock, read a moment later, may be from ours.
_CLOCK_SLACK_S = 0.5


@dataclass
class Block:
    """One step of a script: a request, what it must answer, or both halves apart for a watch."""

    line: int
    name: str = ""
    times: int = 1
    method: str = ""
    target: str = ""
    body: str | None = None
    statuses: set[int] = field(default_factory=set)
    headers: list[str] = field(default_factory=list)
    expected: str = ""
    any_body: bool = False


def parse(text: str) -> Iterator[Block]:
    block: Block | None = None
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            continue
        if not line:
            if block is not None:
                yield block
            block = None
        elif block is None:
            block = _first_line(number, line)
        else:
            _further_line(block, number, line)
    if block is not None:
        yield block


def _first_line(number: int, line: str) -> Block:
    if re.fullmatch(r"&\w+", line):
        return Block(number, name=line[1:])
    match = _REQUEST.fullmatch(line)
    assert match, f"line {number} is no request: {line}"
    return Block(
        number,
        name=match["name"] or "",
        times=int(match["times"] or 1),
        method=match["method"],
        target=match["target"],
    )


def _further_line(block: Block, number: int, line: str) -> None:
    mark, _, text = line.partition(" ")
    match mark:
        case ">" if block.body is None:
            block.body = text
        case "<" if not block.statuses:
            block.statuses = {int(status) for status in text.split()}
        case "<":
            block.headers.append(text)
        case "|":
            block.expected += text + "\n"
        case "/":
            block.expected += text
        case "*":
            block.any_body = True
        case _:
            raise AssertionError(f"line {number} is not understood: {line}")


class Player:
    """Plays blocks on one server; remembers what named tokens stood for."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = server.client()
        self.watches: dict[str, Watch] = {}
        self.remembered: dict[str, str] = {}
        self.sent_s = 0.0

    def play(self, block: Block) -> None:
        if block.name and not block.method:
            self.compare("the body", block.expected, self.watches[block.name].body().decode())
            return
        for _ in range(block.times):
            self.sent_s = time.time()
            if block.name:
                self.watches[block.name] = self.server.open(block.target)
                self.compare_head(block, self.watches[block.name].head)
                continue
            answer = self.client.request(block.method, block.target, block.body)
            self.compare_head(block, answer)
            if not block.any_body:
                self.compare("the body", block.expected, answer.body.decode())

    def compare_head(self, block: Block, answer: Answer) -> None:
        assert answer.status in block.statuses, answer.body.decode()
        for header in block.headers:
            name, _, value = header.partition(": ")
            if name.startswith("!"):
                assert name[1:].lower() not in answer.headers
            else:
                assert name.lower() in answer.headers
                self.compare(name, value, answer.headers[name.lower()])

    def compare(self, what: str, expected: str, found: str) -> None:
        tokens = list(_TOKEN.finditer(expected))
        pattern, end = "", 0
        for token in tokens:
            pattern += re.escape(expected[end : token.start()]) + f"({_PATTERNS[token['kind']]})"
            end = token.end()
        match = re.fullmatch(pattern + re.escape(expected[end:]), found)
        if match is None:
            assert found == expected, what  # shows the difference, tokens and all
        assert match is not None
        for token, text in zip(tokens, match.groups(), strict=True):
            self.check(token, text)

    def check(self, token: re.Match[str], found: str) -> None:
        name, value = token["name"], token["value"]
        if name:
            key = f"{token['kind']} {name}"
            assert self.remembered.setdefault(key, found) == found, f"{key} has changed"
        if value and token["kind"] == "ttl":
            assert int(value) - 1 <= int(found) <= int(value)
        elif value:
            assert found.endswith("Z")
            due_s = datetime.fromisoformat(_to_microseconds(found)).timestamp() - int(value)
            assert self.sent_s - _CLOCK_SLACK_S <= due_s <= time.time() + _CLOCK_SLACK_S


def _to_microseconds(text: str) -> str:
    """A time without the digits that datetime cannot take."""
    return re.sub(r"(\.\d{6})\d+", r"\1", text)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_examples_of_the_api_document(script: Path, fresh_server: Server):
    player = Player(fresh_server)
    for block in parse(script.read_text()):
        try:
            player.play(block)
        except AssertionError as failure:
            failure.add_note(f"{script.name}, line {block.line}")
            raise


def test_there_is_a_script_for_each_chapter():
    assert len(SCRIPTS) == 12
    for script in SCRIPTS:
        assert any(block.statuses for block in parse(script.read_text()))
