"""Values in listings: keys alone, base64, cut; counts and searches."""

import base64
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.listings import ask, below, grow, pages
from tests.support.server import Client, Server

VALUES = {
    "empty": b"",
    "text": b"text",
    "bytes": bytes(range(256)),
    "wide": "\u2028<é>\U0001f600".encode() * 50,
    "large": "é".encode() * 60_000,
    "control": b"\x01" * 90_000,
    "no text": b"\xff\x80" * 50_000,
}


@pytest.fixture(scope="module")
def filled(server: Server) -> Client:
    """A directory /values of all these, each also read by itself."""
    client = server.client()
    for name, value in VALUES.items():
        body = b"noValueOnSuccess=true&value=" + quote(value).encode()
        answer = client.request("PUT", f"/v2/keys/values/{quote(name)}", body)
        assert answer.status == 201
    return client


def shown(client: Client, query: str) -> dict[str, Any]:
    """The nodes of /values by their names, which must be the same one by one."""
    listed = ask(client, "/values", query).json["node"]["nodes"]
    for node in listed:
        assert ask(client, node["key"], query).json == {"action": "get", "node": node}
    return {node["key"].removeprefix("/values/"): node for node in listed}


def test_keys_alone_have_no_values(filled):
    nodes = shown(filled, "keysOnly=true")
    assert set(nodes) == set(VALUES)
    for node in nodes.values():
        assert list(node) == ["key", "modifiedIndex", "createdIndex"]


def test_base64_gives_every_byte(filled):
    for name, node in shown(filled, "base64=true").items():
        assert list(node) == ["key", "value", "encoding", "modifiedIndex", "createdIndex"]
        assert node["encoding"] == "base64"
        assert base64.b64decode(node["value"], validate=True) == VALUES[name]


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 5, 100, 70_000, 10 << 20])
def test_values_are_cut_between_characters(filled, most):
    for name, node in shown(filled, f"maxValue={most}").items():
        value = VALUES[name]
        assert list(node) == ["key", "value", "size", "modifiedIndex", "createdIndex"]
        assert node["size"] == len(value)
        if name not in ("bytes", "no text"):
            assert node["value"] == value[:most].decode("utf-8", "ignore")
    for name, node in shown(filled, f"maxValue={most}&base64=true").items():
        value, part = VALUES[name], base64.b64decode(node["value"], validate=True)
        assert list(node)[1:4] == ["value", "encoding", "size"]
        assert value.startswith(part)
        assert most - 3 <= len(part) <= most or part == value


def test_other_extras_leave_values_as_they_are(filled):
    plain = ask(filled, "/values").json
    assert ask(filled, "/values", "limit=100").json == plain
    assert ask(filled, "/values", "depth=1").body == ask(filled, "/values").body


def test_a_ttl_is_shown_in_every_shape(client, key):
    client.put(f"{key}/x", "v", ttl=100)
    for query in ("keysOnly=true", "maxValue=0", "base64=true", "limit=1"):
        node = ask(client, key, query).json["node"]["nodes"][0]
        assert node["ttl"] in (99, 100)
        assert list(node)[-4:] == ["expiration", "ttl", "modifiedIndex", "createdIndex"]
    assert ask(client, key, "count=true").json["expiring"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_tree(client, key, seed):
    tree = grow(client, key, Random(seed), 60)
    for deep in (False, True):
        for hidden in (False, True):
            values = list(below(tree, deep=deep, hidden=hidden).values())
            wish = f"count=true&recursive={deep}&hidden={hidden}"
            answer = ask(client, key, wish).json
            node = answer.pop("node")
            assert node["key"] == key
            assert "nodes" not in node
            assert answer == {
                "action": "count",
                "keys": sum(value is not None for value in values),
                "dirs": sum(value is None for value in values),
                "bytes": sum(len((value or "").encode()) for value in values),
                "expiring": 0,
                "complete": True,
            }


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("limit", [3, 1000])
def test_a_search_finds_what_the_tree_holds(client, key, seed, limit):
    tree = grow(client, key, Random(seed), 60)
    for text in ("A", "tex", "é", "<&", "/b", "nothing"):
        for where in ("keys", "values", "keys,values"):
            for deep, hidden in ((False, False), (True, False), (True, True)):
                wanted = {}
                for path, value in below(tree, deep=deep, hidden=hidden).items():
                    name = f"{key}/{path}" if "/" in text else path.rpartition("/")[2]
                    if "keys" in where and text.lower() in name.lower():
                        wanted[path] = "keys"
                    elif "values" in where and text.lower() in (value or "").lower():
                        wanted[path] = "values"
                query = (
                    f"find={quote(text)}&in={where}&recursive={deep}&hidden={hidden}&limit={limit}"
                )
                found, scanned = {}, 0
                for answer in pages(client, key, query):
                    part = answer.json
                    assert part["complete"] == ("x-kvd-next" not in answer.headers)
                    assert len(part["nodes"]) <= limit
                    scanned += part["scanned"]
                    for node in part["nodes"]:
                        path = node["key"][len(key) + 1 :]
                        found[path] = node["in"]
                        value = tree[path]
                        assert node.get("size") == (None if value is None else len(value.encode()))
                        assert node.get("dir") == (True if value is None else None)
                        assert ("around" in node) == (node["in"] == "values")
                assert list(found.items()) == list(wanted.items())
                assert scanned == len(below(tree, deep=deep, hidden=hidden))


def test_a_search_shows_what_is_around_the_text(client, key):
    client.put(f"{key}/short", "a needle")
    client.put(f"{key}/long", "é" * 100 + "NEEDLE" + "<" * 100)
    long, short = ask(client, key, "find=needle").json["nodes"]
    assert long["around"] == "…" + "é" * 20 + "NEEDLE" + "<" * 40 + "…"
    assert short["around"] == "a needle"


@pytest.mark.parametrize("text", ["needle", "nädel"])
@pytest.mark.parametrize("place", [0, 65_533, 65_536, 131_070, 200_000])
def test_a_large_value_is_searched_everywhere(client, key, text, place):
    value = "x" * place + text.upper() + "x" * 1000
    client.request("PUT", f"/v2/raw{key}/large?noValueOnSuccess=true", value.encode())
    client.put(f"{key}/other", "x")
    answer = ask(client, key, f"find={quote(text)}").json
    assert [node["key"] for node in answer["nodes"]] == [f"{key}/large"]
    assert text.upper() in answer["nodes"][0]["around"]
    assert answer["scanned"] == 2
    assert ask(client, key, "find=needles").json["nodes"] == []


def test_what_is_found_is_divided_by_its_length(client, key):
    for number in range(30):
        client.put(f"{key}/{number:02}" + "n" * 60_000, "v")
    sizes = [len(answer.json["nodes"]) for answer in pages(client, key, "find=nn")]
    assert sum(sizes) == 30
    assert len(sizes) == 2
