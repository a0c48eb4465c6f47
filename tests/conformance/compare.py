"""Answers in the form of the recordings, and the differences between two of them."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.conformance.wire import Answer

TOKEN = re.compile(r"\{([+-]\d+|#-?\d+|p|z:\d+|n|host|exp|\$\w+)\}")
SORTED = re.compile(r"[?&]sorted=(1|t|T|TRUE|true|True)\b")
TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{0,8}[1-9])?Z")
# How far an expiration may be from now + ttl: the ttl that is shown is rounded up to a second.
EARLY_S, LATE_S = 2.5, 1.5


class Indexes:
    """Relative indexes of a scenario, and the server's.

    When nobody else writes, index k is the start's plus k. `loose`, while other scenarios run at
    the same time, each k is bound to what is seen first; it must stay that, and keep the order.
    """

    def __init__(self, start: int, *, loose: bool) -> None:
        self.start = start
        self.loose = loose
        self.bound = {0: start}

    def guess(self, k: int) -> int:
        """The index to write into a request."""
        if not self.loose or k in self.bound:
            return self.bound.get(k, self.start + k)
        below = max((j for j in self.bound if j < k), default=0)
        return self.bound[below] + k - below

    def match(self, k: int, found: int, *, current: bool = False) -> bool:
        """Whether an index of the server can be index k; `current` ones may have been moved on."""
        if not self.loose:
            return found == self.start + k
        if current:
            return found >= max((i for j, i in self.bound.items() if j <= k), default=0)
        if k not in self.bound:
            for j, i in self.bound.items():
                if (j < k and i >= found) or (j > k and i <= found):
                    return False
        return self.bound.setdefault(k, found) == found


@dataclass
class Comparison:
    """What stands for the tokens of one scenario."""

    indexes: Indexes
    prefix: str
    host: str
    saved: dict[str, str]
    started_s: float
    slept: bool = False
    raft_index: int = 0
    first_counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Observation:
    """What came back for a step; `lines` for a request that was left open."""

    answer: Answer
    method: str
    sent_s: float
    lines: list[bytes] | None = None
    head_came_early: bool = False
    complete: bool = False


def fill_in(comparison: Comparison, text: str) -> str:
    """A text with its tokens made concrete."""

    def concrete(match: re.Match[str]) -> str:
        token = match[1]
        match token[0]:
            case "+" | "-":
                return str(comparison.indexes.guess(int(token)))
            case "#":
                return f"{comparison.indexes.guess(int(token[1:])):020d}"
            case "z":
                return "z" * int(token[2:])
            case "$":
                return comparison.saved.get(token[1:], "")
        return {"p": comparison.prefix, "host": comparison.host}.get(token, match[0])

    return TOKEN.sub(concrete, text)


def differences(
    comparison: Comparison, step: dict[str, Any], expected: dict[str, Any], seen: Observation
) -> list[str]:
    """Where an answer differs from the recorded one; empty if it does not."""
    if step.get("cmp") == "status":
        return list(_compare(comparison, seen, expected["s"], seen.answer.status, "status"))
    found = _described(comparison, step, seen)
    result = list(_compare(comparison, seen, expected, found, ""))
    if not step.get("cmp") and ("json" in expected or "events" in expected):
        for raw in [seen.answer.body] if seen.lines is None else seen.lines:
            if not _is_written_as_go_does(raw):
                result.append(f"not as Go writes JSON: {raw!r}")
    return result


def _described(comparison: Comparison, step: dict[str, Any], seen: Observation) -> dict[str, Any]:
    """An answer in the words of the recordings."""
    headers = seen.answer.headers
    out: dict[str, Any] = {"s": seen.answer.status}
    for word, name in (("ct", "content-type"), ("allow", "allow"), ("loc", "location")):
        if name in headers:
            out[word] = headers[name]
    if "x-etcd-index" in headers:
        out["xi"] = int(headers["x-etcd-index"])
    if "x-raft-index" in headers or "x-raft-term" in headers:
        out["raft"] = _raft_headers_are_right(comparison, seen)
    if "x-etcd-cluster-id" in headers:
        out["cid"] = bool(re.fullmatch("[1-9a-f][0-9a-f]{0,15}", headers["x-etcd-cluster-id"]))
    if seen.lines is not None:
        out["early"] = seen.head_came_early
        out["events"] = [json.loads(line) for line in seen.lines]
        out["end"] = "complete" if seen.complete else "open"
        return out
    if seen.method == "HEAD":
        out["length"] = "content-length" in headers
    return out | _described_body(comparison, step, seen.answer)


def _described_body(comparison: Comparison, step: dict[str, Any], answer: Answer) -> dict[str, Any]:
    try:
        content = json.loads(answer.body)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        # The bodies of redirects and of the HTTP layer's own refusals are not compared.
        is_compared = answer.body and answer.status not in (301, 400)
        return {"text": answer.body.decode("utf-8", "replace")} if is_compared else {}
    match step.get("cmp"):
        case "shape":
            content = _shape(content)
        case "delta":
            first = comparison.first_counts = comparison.first_counts or content
            content = {name: count - first[name] for name, count in content.items()}
        case _ if not SORTED.search(step.get("u", "")):
            content = _in_order_of_keys(content)
    return {"json": content, "nl": answer.body.endswith(b"\n")}


def _raft_headers_are_right(comparison: Comparison, seen: Observation) -> bool:
    index = seen.answer.headers.get("x-raft-index", "")
    term = seen.answer.headers.get("x-raft-term", "")
    if not (index.isdigit() and term.isdigit()):
        return False
    if comparison.indexes.loose or seen.lines is not None:
        return True  # the headers of a watch are older than the answers compared before it
    before, comparison.raft_index = comparison.raft_index, int(index)
    return before <= comparison.raft_index


def _shape(value: Any) -> Any:
    """The names and types of a value; one member stands for a list."""
    if isinstance(value, dict):
        return {name: _shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_shape(member) for member in value[:1]]
    return "number" if type(value) in (int, float) else type(value).__name__


def _in_order_of_keys(value: Any) -> Any:
    """The order of `nodes` is free unless sorted=true was asked."""
    if not isinstance(value, dict):
        return value
    return {
        name: sorted(map(_in_order_of_keys, member), key=lambda node: node["key"])
        if name == "nodes"
        else _in_order_of_keys(member)
        for name, member in value.items()
    }


def _compare(
    comparison: Comparison, seen: Observation, expected: Any, found: Any, path: str
) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        yield from _compare_objects(comparison, seen, expected, found, path)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for number, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _compare(comparison, seen, one, other, f"{path}[{number}]")
    elif isinstance(expected, str) and TOKEN.search(expected):
        if not _tokens_match(comparison, expected, found, path):
            yield f"{path}: expected {fill_in(comparison, expected)}, found {found!r}"
    elif type(expected) is not type(found) or expected != found:
        yield f"{path}: expected {expected!r}, found {found!r}"


def _compare_objects(
    comparison: Comparison,
    seen: Observation,
    expected: dict[str, Any],
    found: dict[str, Any],
    path: str,
) -> Iterator[str]:
    is_node = path.endswith(("node", "prevNode", "]")) and "modifiedIndex" in expected
    in_events = "events" in path
    for name in expected.keys() | found.keys():
        here = f"{path}.{name}" if path else name
        one, other = expected.get(name), found.get(name)
        if name == "ttl" and is_node:
            # The seconds left, which have moved on where the scenario has slept.
            slack = 1 if comparison.slept or in_events else 0
            if abs((one or 0) - (other or 0)) > slack:
                yield f"{here}: expected {one}, found {other}"
        elif name not in found:
            yield f"{here}: expected {one!r}, found nothing"
        elif name not in expected:
            # etcd leaves out the key of the root.
            if (name, other) != ("key", "/"):
                yield f"{here}: expected nothing, found {other!r}"
        elif one == "{exp}":
            left_s = found.get("ttl", 0)
            since_s = comparison.started_s if in_events else seen.sent_s
            if not _is_time_between(
                other, since_s + left_s - EARLY_S, time.time() + left_s + LATE_S
            ):
                yield f"{here}: expected a time {left_s} s from now, found {other!r}"
        else:
            yield from _compare(comparison, seen, one, other, here)
    if path and expected.keys() == found.keys() and list(expected) != list(found):
        yield f"{path}: expected the order {list(expected)}, found {list(found)}"


def _tokens_match(comparison: Comparison, expected: str, found: Any, path: str) -> bool:
    """Whether a found value can be what a text with tokens stands for."""
    alone = re.fullmatch(r"\{([+-]\d+)\}", expected)
    if alone and type(found) is int:
        is_current = path in ("xi", "json.index")
        return comparison.indexes.match(int(alone[1]), found, current=is_current)
    if not isinstance(found, str):
        return False
    numbers: list[int] = []
    pattern = ""
    for piece in re.split(r"(\{[^{}]*\})", expected):
        if re.fullmatch(r"\{(#-?|[+-])\d+\}", piece):
            numbers.append(int(piece.strip("{#}")))
            pattern += r"(\d{20})" if piece[1] == "#" else r"(\d+)"
        else:
            pattern += re.escape(fill_in(comparison, piece))
    match = re.fullmatch(pattern, found, re.DOTALL)
    return match is not None and all(
        comparison.indexes.match(k, int(digits))
        for k, digits in zip(numbers, match.groups(), strict=True)
    )


def _is_time_between(value: Any, earliest_s: float, latest_s: float) -> bool:
    match = TIME.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return False
    seconds = datetime.fromisoformat(match[1] + "+00:00").timestamp() + float(match[2] or "0")
    return earliest_s <= seconds <= latest_s


def _is_written_as_go_does(raw: bytes) -> bool:
    """Whether JSON is byte for byte what Go's encoder writes for the same data."""
    text = raw.decode("utf-8").replace("\\ufffd", "\ufffd").strip("\n")
    canonical = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        canonical = canonical.replace(character, f"\\u{ord(character):04x}")
    # Go has no short escape for these two; a backslash before them is a character of its own.
    canonical = re.sub(
        r"(\\\\)|\\b|\\f",
        lambda match: match[1] or {"\\b": "\\u0008", "\\f": "\\u000c"}[match[0]],
        canonical,
    )
    return canonical == text
