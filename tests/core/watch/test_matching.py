"""The rules of matching: which events a watcher of a path receives, live and from history."""

from collections.abc import Iterable
from typing import NamedTuple

import pytest

from tests.support.server import Client
from tests.support.waiting import wait_until
from tests.support.watching import Received, do, index_of, mark, received_until


class Rule(NamedTuple):
    """What a watcher is told of some steps; from history the same, unless said otherwise."""

    watched: str
    steps: list[str]
    received: Received
    before: tuple[str, ...] | list[str] = ()
    recursive: bool = False
    history: Received | None = None


SET_A = ("set", "/a")
RULES = {
    "set": Rule("/a", ["PUT /a?value=1"], [SET_A]),
    "create": Rule("/a", ["PUT /a?prevExist=false"], [("create", "/a")]),
    "update": Rule("/a", ["PUT /a?prevExist=true"], [("update", "/a")], ["PUT /a"]),
    "compare-and-swap": Rule(
        "/a", ["PUT /a?prevValue=1"], [("compareAndSwap", "/a")], ["PUT /a?value=1"]
    ),
    "delete": Rule("/a", ["DELETE /a"], [("delete", "/a")], ["PUT /a"]),
    "compare-and-delete": Rule(
        "/a", ["DELETE /a?prevValue=1"], [("compareAndDelete", "/a")], ["PUT /a?value=1"]
    ),
    "directory made": Rule("/a", ["PUT /a?dir=true"], [SET_A]),
    "directory instead of a file": Rule("/a", ["PUT /a?dir=true"], [SET_A], ["PUT /a"]),
    "declined values": Rule("/a", ["PUT /a?value=1&noValueOnSuccess=true"], [SET_A]),
    "refresh": Rule("/a", ["PUT /a?refresh=true&ttl=99"], [], ["PUT /a?value=1"]),
    "refreshing update": Rule(
        "/a", ["PUT /a?refresh=true&ttl=99&prevExist=true"], [], ["PUT /a?value=1"]
    ),
    "refreshing compare-and-swap": Rule(
        "/a", ["PUT /a?refresh=true&ttl=99&prevValue=1"], [], ["PUT /a?value=1"]
    ),
    "refresh below": Rule(
        "/d", ["PUT /d/a?refresh=true&ttl=99"], [], ["PUT /d/a"], recursive=True
    ),
    "another key": Rule("/a", ["PUT /b", "PUT /ab", "PUT /a.b"], []),
    "refused": Rule(
        "/a", ["REFUSED PUT /a?prevExist=false", "REFUSED DELETE /a/b"], [], ["PUT /a"]
    ),
    "child, recursive": Rule("/d", ["PUT /d/a"], [("set", "/d/a")], recursive=True),
    "grandchild, recursive": Rule(
        "/d", ["PUT /d/e/f/g"], [("set", "/d/e/f/g")], recursive=True
    ),
    "child, not recursive": Rule("/d", ["PUT /d/a", "PUT /d/b/c", "DELETE /d/a"], []),
    "implicit parent": Rule("/d", ["PUT /d/e/f"], []),
    "sibling with the same beginning": Rule(
        "/d", ["PUT /dd/a", "PUT /d-", "DELETE /dd?recursive=true"], [], recursive=True
    ),
    "in order": Rule("/q", ["POST /q"], [("create", "/q/INDEX")], recursive=True),
    "directory updated": Rule(
        "/d", ["PUT /d?prevExist=true&ttl=99"], [("update", "/d")], ["PUT /d/a"]
    ),
    "directory deleted": Rule(
        "/d", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"]
    ),
    "directory deleted, recursive": Rule(
        "/d", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"], recursive=True
    ),
    "parent deleted": Rule(
        "/d/a/b", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"]
    ),
    "parent deleted, recursive": Rule(
        "/d/a", ["DELETE /d?recursive=true"], [("delete", "/d")], ["PUT /d/a/b"], recursive=True
    ),
    "empty parent deleted": Rule("/d/a", ["DELETE /d?dir=true"], [], ["PUT /d?dir=true"],
                                 history=[("delete", "/d")]),
    "parent of what never was deleted": Rule(
        "/d/none/x", ["DELETE /d?recursive=true"], [], ["PUT /d/a"], history=[("delete", "/d")]
    ),
    "parent of what was before deleted": Rule(
        "/d/a", ["DELETE /d?recursive=true"], [], ["PUT /d/a", "PUT /d/b", "DELETE /d/a"],
        history=[("delete", "/d")],
    ),
    "hidden parent deleted": Rule(
        "/_d/_a", ["DELETE /_d?recursive=true"], [("delete", "/_d")], ["PUT /_d/_a/_b"]
    ),
    "parent expired": Rule(
        "/d/a", ["PUT /d?prevExist=true&ttl=0", "AWAIT /d"], [("expire", "/d")], ["PUT /d/a"]
    ),
    "sibling of the deleted": Rule(
        "/pdzz/a", ["DELETE /pd?recursive=true"], [], ["PUT /pd/a", "PUT /pdzz/a"]
    ),
    "expired": Rule(
        "/a", ["PUT /a?ttl=0", "AWAIT /a"], [SET_A, ("expire", "/a")]
    ),
    "expired below": Rule(
        "/d", ["PUT /d/a?ttl=0", "AWAIT /d/a"], [("set", "/d/a"), ("expire", "/d/a")],
        recursive=True,
    ),
    "hidden": Rule(
        "/h", ["PUT /h/_a", "PUT /h/_d/b", "PUT /h/c/_e", "DELETE /h/_d?recursive=true"], [],
        recursive=True,
        history=[("set", "/h/_a"), ("set", "/h/_d/b"), ("set", "/h/c/_e"), ("delete", "/h/_d")],
    ),
    "hidden, named": Rule("/h/_a", ["PUT /h/_a"], [("set", "/h/_a")]),
    "below hidden": Rule(
        "/h/_d", ["PUT /h/_d/b", "PUT /h/_d/_e"], [("set", "/h/_d/b")], recursive=True,
        history=[("set", "/h/_d/b"), ("set", "/h/_d/_e")],
    ),
    "below hidden, from far above": Rule(
        "/h", ["PUT /h/_d/b/c"], [], recursive=True, history=[("set", "/h/_d/b/c")]
    ),
    "underscores elsewhere": Rule(
        "/h", ["PUT /h/a_/b_c"], [("set", "/h/a_/b_c")], recursive=True
    ),
    "hidden expired": Rule(
        "/h", ["PUT /h/_a?ttl=0", "AWAIT /h/_a"], [], recursive=True,
        history=[("set", "/h/_a"), ("expire", "/h/_a")],
    ),
}  # fmt: skip


def play(client: Client, at: str, steps: Iterable[str]) -> None:
    for step in steps:
        if step.startswith("AWAIT "):
            key = at + step.removeprefix("AWAIT ")
            wait_until(lambda key=key: client.get(key).status == 404)
        else:
            do(client, at, step)


def expected(received: Received, last: int) -> Received:
    return [(action, key.replace("INDEX", f"{last - 1:020}")) for action, key in received]


@pytest.mark.parametrize("name", RULES)
def test_live_a_watcher_receives(server, client, at, name):
    rule = RULES[name]
    play(client, at, rule.before)
    watch = server.watch(at + rule.watched, stream="true", recursive=str(rule.recursive))
    play(client, at, rule.steps)
    last = mark(client, at + rule.watched)
    assert received_until(watch, at, last) == expected(rule.received, last)


@pytest.mark.parametrize("name", RULES)
def test_from_history_a_watcher_receives(server, client, at, name):
    rule = RULES[name]
    play(client, at, rule.before)
    start = index_of(client) + 1
    play(client, at, rule.steps)
    last = mark(client, at + rule.watched)
    options = {"recursive": str(rule.recursive), "waitIndex": start}
    received = expected(rule.received if rule.history is None else rule.history, last)
    watch = server.watch(at + rule.watched, stream="true", **options)
    assert received_until(watch, at, last) == received
    # A watch that is no stream is told the first of them.
    event = server.watch(at + rule.watched, **options).event()
    assert (event["action"], event["node"]["key"].removeprefix(at)) == [
        *received, (event["action"], rule.watched)
    ][0]  # fmt: skip
