"""Workloads: the requests of the generators, and the state that a server must have afterwards.

A *script* is the talk of one connection: a Python generator that yields request bytes and is sent
the bytes of each answer. Lane i of n uses only the keys whose number leaves i when divided by n,
and has one request in flight, so the last acknowledged state of every key is known without locks or
time stamps, and is written to `Expected`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle

from bench.load.keyspace import NUMBER_DIGITS, Keyspace
from bench.load.wire import Address, Client, LoadError, is_complete, parse, render, render_head

Script = Generator[bytes, bytes, None]
Expected = dict[int, bytes | None]
"""The value of each key by its number; None is a key that is not there."""

VALUE_FIELD = b'"value":"'
TTL_S = 600
"""Long enough that no key of a run expires."""


RECURSIVE = "?recursive=true"
TREE_DIRECTORIES = 100


class WrongAnswer(Exception):
    """The server answered fast and wrong: a value lost, never written, or of another key."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One connection's part of a run."""

    space: Keyspace
    lane: int
    lanes: int
    expected: Expected
    base: int = 0
    """What the numbers of its values begin behind."""

    def visits(self) -> list[int]:
        """Return its keys in the order of visit."""
        return self.space.lane_keys(self.lane, self.lanes)

    def heads(self, method: str, fixed_bytes: int) -> dict[int, bytes]:
        """Return each key's request up to the body, which is `fixed_bytes` and one value long."""
        body_bytes = fixed_bytes + self.space.value_bytes
        return {key: render_head(method, self.space.path(key), body_bytes) for key in self.visits()}

    def values(self) -> Generator[bytes, None, None]:
        """Return values that no other lane writes, each with its own number."""
        padding = self.space.padding
        for turn in count(1):
            yield b"%012d" % (self.base + turn * self.lanes + self.lane) + padding


def succeeded(answer: bytes) -> bool:
    """Whether an answer's status is 2xx."""
    return answer[9:10] == b"2"


QUORUM = "?quorum=true"


def get(lane: Lane, query: str = "") -> Script:
    """Read keys; every answer must hold the value last written."""
    requests = [(key, render("GET", lane.space.path(key) + query)) for key in lane.visits()]
    for key, request in cycle(requests):
        answer = yield request
        check_value(lane, key, answer)


def check_value(lane: Lane, key: int, answer: bytes) -> None:
    """Raise `WrongAnswer` unless a success shows the value last acknowledged for `key`."""
    expected = lane.expected[key]
    at = answer.find(VALUE_FIELD) + len(VALUE_FIELD)
    if succeeded(answer) and not (expected and answer.startswith(expected, at)):
        raise WrongAnswer(f"{lane.space.path(key)}: expected {expected!r}, found {answer!r}")


def put(lane: Lane) -> Script:
    """Overwrite keys."""
    heads = lane.heads("PUT", len(b"value="))
    for key, value in zip(cycle(lane.visits()), lane.values(), strict=False):
        answer = yield heads[key] + b"value=" + value
        if succeeded(answer):
            lane.expected[key] = value


def cas(lane: Lane) -> Script:
    """Overwrite keys on condition that they hold the value last acknowledged."""
    heads = lane.heads("PUT", len(b"prevValue=&value=") + lane.space.value_bytes)
    for key, value in zip(cycle(lane.visits()), lane.values(), strict=False):
        answer = yield heads[key] + b"prevValue=%b&value=%b" % (lane.expected[key] or b"", value)
        if succeeded(answer):
            lane.expected[key] = value


def post(lane: Lane) -> Script:
    """Add in-order keys to directories; the server chooses their names."""
    heads = lane.heads("POST", len(b"value="))
    for key, value in zip(cycle(lane.visits()), lane.values(), strict=False):
        answer = yield heads[key] + b"value=" + value
        if succeeded(answer):
            # A number is written once, so that `Expected` holds the added values instead of keys
            # here.
            lane.expected[int(value[:NUMBER_DIGITS])] = value


def delete(lane: Lane) -> Script:
    """Delete keys and make them again, by turns: half of the requests are DELETEs."""
    heads = lane.heads("PUT", len(b"value="))
    for key, value in zip(cycle(lane.visits()), lane.values(), strict=False):
        answer = yield render("DELETE", lane.space.path(key))
        if succeeded(answer):
            lane.expected[key] = None
        answer = yield heads[key] + b"value=" + value
        if succeeded(answer):
            lane.expected[key] = value


def refresh(lane: Lane) -> Script:
    """Refresh TTLs, as the holder of a lock does; values stay."""
    body = b"ttl=%d&refresh=true&prevExist=true" % TTL_S
    requests = [(key, render("PUT", lane.space.path(key), body)) for key in lane.visits()]
    for key, request in cycle(requests):
        answer = yield request
        check_value(lane, key, answer)


def mixed(lane: Lane) -> Script:
    """Nine reads to one overwrite; every read must hold the value last acknowledged."""
    heads = lane.heads("PUT", len(b"value="))
    reads = {key: render("GET", lane.space.path(key)) for key in heads}
    values = lane.values()
    for turn, key in enumerate(cycle(lane.visits()), lane.lane):
        if turn % 10:
            answer = yield reads[key]
            check_value(lane, key, answer)
        else:
            value = next(values)
            answer = yield heads[key] + b"value=" + value
            if succeeded(answer):
                lane.expected[key] = value


def listing(lane: Lane, query: str = "") -> Script:
    """List the directory; the first answer is checked value by value, the others by length."""
    request = render("GET", lane.space.directory + query)
    first = yield request
    values = listed_values(first)
    if sorted(values) != sorted(value or b"" for value in lane.expected.values()):
        raise WrongAnswer(f"GET {lane.space.directory}: {len(values)} children do not match")
    body_bytes = len(first) - first.find(b"\r\n\r\n")
    while True:
        answer = yield request
        found = len(answer) - answer.find(b"\r\n\r\n")
        if succeeded(answer) and found != body_bytes:
            raise WrongAnswer(f"a listing of {found} bytes after one of {body_bytes}")


def changed_listing(lane: Lane, query: str = "") -> Script:
    """Write a key and list its directory, by turns: every listing must show what was written."""
    request = render("GET", lane.space.directory + query)
    heads = lane.heads("PUT", len(b"value="))
    for key, value in zip(cycle(lane.visits()), lane.values(), strict=False):
        answer = yield heads[key] + b"value=" + value
        if not succeeded(answer):
            continue
        lane.expected[key] = value
        answer = yield request
        if succeeded(answer) and value not in answer:
            raise WrongAnswer(f"a listing of {lane.space.directory} lacks the value {value!r}")


def listed_values(answer: bytes) -> list[bytes]:
    """Return the values of all keys in a listing, those of subdirectories too."""
    values: list[bytes] = []
    directories = [json.loads(parse(answer).body)["node"]]
    while directories:
        for node in directories.pop().get("nodes", ()):
            if node.get("dir"):
                directories.append(node)
            else:
                values.append(node["value"].encode())
    return values


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of load: the script of a connection, and what the keys hold at first."""

    script: Callable[[Lane], Script]
    preload: bytes | None = b""
    """What follows the value in the body of the PUTs that make the keys; None: there are none."""
    directories: int = 0
    """Into so many subdirectories the keys are spread."""


WORKLOADS = {
    "get": Workload(get),
    "quorum": Workload(partial(get, query=QUORUM)),
    "put": Workload(put),
    "cas": Workload(cas),
    "post": Workload(post, preload=None),
    "delete": Workload(delete),
    "refresh": Workload(refresh, preload=b"&ttl=%d" % TTL_S),
    "mixed": Workload(mixed),
    "list": Workload(listing),
    "relist": Workload(changed_listing),
    "tree": Workload(partial(listing, query=RECURSIVE), directories=TREE_DIRECTORIES),
    "retree": Workload(partial(changed_listing, query=RECURSIVE), directories=TREE_DIRECTORIES),
}


def preload_script(lane: Lane, tail: bytes) -> Script:
    """Write value 0 to each key of the lane."""
    value = lane.space.value(0)
    for key in lane.visits():
        answer = yield render("PUT", lane.space.path(key), b"value=" + value + tail)
        if not succeeded(answer):
            raise LoadError(f"could not make {lane.space.path(key)}: {answer!r}")
        lane.expected[key] = value


def read_back_script(lane: Lane) -> Script:
    """Read each key of the lane into `expected`."""
    return read_back_keys(lane.space, lane.visits(), lane.expected)


def read_back_keys(space: Keyspace, keys: Iterable[int], found: Expected) -> Script:
    """Read keys into `found`."""
    for key in keys:
        answer = parse((yield render("GET", space.path(key))))
        if answer.status not in {200, 404}:
            raise LoadError(f"could not read {space.path(key)}: {answer}")
        node = json.loads(answer.body).get("node")
        found[key] = node["value"].encode() if node else None


def read_back_children_script(lane: Lane) -> Script:
    """Read the in-order children of each directory of the lane into `expected`, by number."""
    for key in lane.visits():
        received = yield render("GET", lane.space.path(key))
        if not succeeded(received):
            continue  # a directory that no POST reached
        for value in listed_values(received):
            number = int(value[:NUMBER_DIGITS])
            if number in lane.expected:
                raise WrongAnswer(f"{lane.space.path(key)} holds the value {value!r} twice")
            lane.expected[number] = value


def clear(address: Address, space: Keyspace) -> None:
    """Delete everything that a run left behind."""
    with Client(address) as client:
        received = client.exchange(render("DELETE", space.directory + "?recursive=true"))
        if not is_complete(received) or parse(received).status not in {200, 404}:
            raise LoadError(f"could not clear {space.directory}: {received!r}")


def compare(found: Expected, expected: Expected) -> None:
    """Raise `WrongAnswer` unless the server holds exactly what it acknowledged."""
    if found == expected:
        return
    wrong = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
    n = min(wrong)
    raise WrongAnswer(
        f"{len(wrong)} of {len(expected)} keys differ from what was acknowledged, "
        f"the first is {n}: expected {expected.get(n)!r}, found {found.get(n)!r}"
    )
