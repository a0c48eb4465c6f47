"""Extras of reads, over HTTP: pages, levels, hidden nodes, values, counts, searches, marks.

What is answered is compared with what a plain dict of the same keys says, the slow way.
"""

import base64
import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import pytest

from kvd.storage.tools.bulk_load import bulk_load
from tests.support.raw import Raw, request
from tests.support.server import Answer, Client, Server, running

Tree = dict[str, str | None]
"""All nodes below a directory: their paths, relative to it; values, None for directories."""

NAMES = ["a", "b", "B", "a-", "_h", "_", "`", "~", "é", "x y", "<&>", "0" * 20, "n%2Fm"]


@pytest.fixture
def key() -> str:
    """A directory of one's own."""
    return f"/{secrets.token_hex(4)}"


def ask(client: Client, key: str, query: str = "", method: str = "GET") -> Answer:
    return client.request(method, f"/v2/keys{quote(key)}" + (f"?{query}" if query else ""))


def refusal(answer: Answer) -> tuple[int, int, str, int, str]:
    error = answer.json
    index = answer.headers["x-etcd-index"]
    return answer.status, error["errorCode"], error["cause"], error["index"], index


def grow(client: Client, key: str, dice: Random, nodes: int) -> Tree:
    """Make a random tree below a key."""
    tree: Tree = {}
    client.put(key, dir="true")
    while len(tree) < nodes:
        names = dice.choices(NAMES, k=dice.choice((1, 1, 1, 2, 2, 3)))
        paths = ["/".join(names[: n + 1]) for n in range(len(names))]
        if any(tree.get(path) is not None for path in paths[:-1]) or paths[-1] in tree:
            continue
        is_dir = dice.random() < 0.2
        value = None if is_dir else dice.choice(("", "v", "Text", "<é>", "v" * 2000))
        target = quote(f"{key}/{paths[-1]}")
        answer = client.put(target, dir="true") if is_dir else client.put(target, value)
        assert answer.status == 201
        tree |= dict.fromkeys(paths[:-1]) | {paths[-1]: value}
    return tree


def below(tree: Tree, *, deep: bool = True, hidden: bool = False) -> Tree:
    """Those that a listing shows, in its order."""
    chosen = {
        path: value
        for path, value in tree.items()
        if (deep or "/" not in path)
        and (hidden or not any(name.startswith("_") for name in path.split("/")))
    }
    return dict(sorted(chosen.items(), key=lambda item: [n.encode() for n in item[0].split("/")]))


def flat(node: Any, key: str) -> Tree:
    """The nodes in an answer, in their order."""
    found: Tree = {}
    for child in node.get("nodes", []):
        assert child["key"].startswith(f"{key}/")
        found[child["key"][len(key) + 1 :]] = None if child.get("dir") else child["value"]
        found |= flat(child, key)
    return found


def pages(client: Client, key: str, query: str) -> Iterator[Answer]:
    """All pages, by the header that leads from one to the next."""
    place = ""
    while True:
        answer = ask(client, key, query + place)
        assert answer.status == 200, answer.body
        yield answer
        following = answer.headers.get("x-kvd-next")
        if following is None:
            return
        place = f"&after={following}"


# What is wrong


@pytest.mark.parametrize(
    ("query", "name"),
    [
        *((f"limit={raw}", "limit") for raw in ("", "0", "10001", "-1", "abc", "1.5", "9" * 30)),
        *((f"marks={raw}", "marks") for raw in ("", "0", "10001", "x")),
        *((f"depth={raw}", "depth") for raw in ("0", "1001", "all")),
        *((f"maxValue={raw}", "maxValue") for raw in ("", "-1", "10485761", "1k")),
        *((f"{name}=maybe", name) for name in ("count", "keysOnly", "hidden", "base64", "raw")),
        *((f"{name}=", name) for name in ("count", "keysOnly", "hidden", "base64", "raw")),
        ("find=", "find"),
        ("find=" + "x" * 1025, "find"),
        ("find=x&in=names", "in"),
        ("find=x&in=", "in"),
        ("find=x&after=/elsewhere/x", "after"),
    ],
    ids=lambda text: text[:24],
)
def test_a_bad_value_is_refused_by_its_name(client, query, name):
    client.put("/wrong/x", 1)
    for method in ("GET", "HEAD"):
        answer = ask(client, "/wrong", query, method)
        assert answer.status == 400
        if method == "GET":
            assert refusal(answer) == (400, 209, f'invalid value for "{name}"', 0, "0")


@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ("in=keys", '"in" needs "find"'),
        ("limit=3&recursive=true", '"limit" cannot be used with "recursive"'),
        ("after=x&recursive=true", '"after" cannot be used with "recursive"'),
        ("limit=3&depth=2", '"limit" cannot be used with "depth"'),
        ("marks=3&recursive=true", '"marks" cannot be used with "recursive"'),
        ("marks=3&limit=3", '"limit" cannot be used with "marks"'),
        ("count=true&limit=3", '"limit" cannot be used with "count"'),
        ("count=true&keysOnly=true", '"keysOnly" cannot be used with "count"'),
        ("find=x&count=true", '"count" cannot be used with "find"'),
        ("find=x&prefix=x", '"prefix" cannot be used with "find"'),
        ("keysOnly=true&maxValue=3", '"maxValue" cannot be used with "keysOnly"'),
        ("base64=true&keysOnly=true", '"base64" cannot be used with "keysOnly"'),
        ("raw=true&base64=true", '"base64" cannot be used with "raw"'),
        ("wait=true&limit=3", '"limit" cannot be used with "wait"'),
        ("wait=true&raw=true", '"raw" cannot be used with "wait"'),
        ("wait=true&find=x", '"find" cannot be used with "wait"'),
    ],
)
def test_what_means_nothing_beside_another_is_refused(client, query, cause):
    client.put("/wrong/x", 1)
    assert refusal(ask(client, "/wrong", query)) == (400, 209, cause, 0, "0")


def test_etcds_own_parameters_are_checked_first(client):
    answer = ask(client, "/x", "limit=abc&recursive=maybe")
    assert refusal(answer)[2] == 'invalid value for "recursive"'
    assert refusal(ask(client, "/x", "limit=abc&prevIndex=x"))[1] == 203


@pytest.mark.parametrize(
    "query", ["count=false", "limit=5&raw=false", "depth=1&limit=5", "hidden=0"]
)
def test_a_flag_that_is_off_asks_for_nothing(client, query, key):
    client.put(f"{key}/x", 1)
    assert ask(client, key, query).body == ask(client, key).body


def test_there_is_no_such_key(client, key):
    for query in ("limit=3", "count=true", "find=x", "marks=5", "raw=true", "keysOnly=true"):
        answer = ask(client, f"{key}/missing", query)
        assert refusal(answer)[:2] == (404, 100)
        assert answer.json["index"] == answer.index > 0
    client.put(f"{key}/file", "v")
    assert refusal(ask(client, f"{key}/file/x", "limit=3"))[:2] == (400, 104)


# What is shown


@pytest.mark.parametrize("seed", range(4))
def test_listings_show_what_is_there(client, key, seed):
    tree = grow(client, key, Random(seed), 60)
    for hidden in (False, True):
        wish = "&hidden=true" if hidden else ""
        for query, deep in (("depth=1", False), ("depth=1000", True), ("recursive=true", True)):
            answer = ask(client, key, query + wish)
            wanted = below(tree, deep=deep, hidden=hidden)
            assert list(flat(answer.json["node"], key).items()) == list(wanted.items())
        two = [path for path in below(tree, hidden=hidden) if path.count("/") < 2]
        assert list(flat(ask(client, key, "depth=2" + wish).json["node"], key)) == two
    assert ask(client, key, "depth=1").body == ask(client, key).body
    assert ask(client, key, "depth=9").body == ask(client, key, "recursive=true").body


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("hidden", [False, True])
def test_pages_joined_are_the_whole_listing(client, key, seed, hidden):
    tree = grow(client, key, Random(seed), 50)
    wish = "&hidden=true" if hidden else ""
    wanted = list(below(tree, deep=False, hidden=hidden))
    for limit in (1, 2, 7, 50, 10_000):
        found, sizes = [], []
        for answer in pages(client, key, f"limit={limit}{wish}"):
            names = list(flat(answer.json["node"], key))
            found += names
            sizes.append(len(names))
            following = answer.headers.get("x-kvd-next")
            assert following is None or unquote_to_bytes(following).decode() == names[-1]
        assert found == wanted
        assert set(sizes[:-1]) <= {limit}
    for first in wanted:
        answer = ask(client, key, f"after={quote(first, safe='')}{wish}")
        assert list(flat(answer.json["node"], key)) == [
            n for n in wanted if n.encode() > first.encode()
        ]


def test_a_place_need_not_exist(client, key):
    for name in ("a", "c", "l" * 500, "l" * 481, "z"):
        client.put(f"{key}/{name}", 1)
    for after, wanted in (("b", "c"), ("c0", "l" * 481), ("l" * 490, "l" * 500), ("m", "z")):
        answer = ask(client, key, f"after={after}&limit=1")
        assert list(flat(answer.json["node"], key)) == [wanted]


def test_names_that_are_no_text_are_paged(client, key):
    for name in ("%FF", "%FF%00", "%C3%A9", "a%0D%0Ab"):
        client.request("PUT", f"/v2/keys{key}/{name}", {"value": 1})
    places = [answer.headers.get("x-kvd-next") for answer in pages(client, key, "limit=1")]
    assert places == ["a%0D%0Ab", "%C3%A9", "%FF", None]


def test_a_prefix_chooses_children(client, key):
    for name in ("a", "ab", "abc", "ac", "b", "_a", "_ab"):
        client.put(f"{key}/{name}/x", 1)
    for query, wanted in {
        "prefix=ab": ["ab", "abc"],
        "prefix=_a": [],
        "prefix=_a&hidden=true": ["_a", "_ab"],
        "prefix=a&after=ab": ["abc", "ac"],
        "prefix=b&after=a": ["b"],
        "prefix=zz": [],
        "prefix=": ["a", "ab", "abc", "ac", "b"],
    }.items():
        assert list(flat(ask(client, key, query).json["node"], key)) == wanted
        counted = ask(client, key, f"count=true&{query}") if "after" not in query else None
        assert counted is None or counted.json["dirs"] == len(wanted)
    deep = ask(client, key, "prefix=ab&recursive=true")
    assert list(flat(deep.json["node"], key)) == ["ab", "ab/x", "abc", "abc/x"]
    answer = ask(client, key, "prefix=a&limit=2")
    assert answer.headers["x-kvd-next"] == "ab"
    assert "x-kvd-next" not in ask(client, key, "prefix=b&limit=1").headers


def test_an_empty_directory_has_no_nodes(client, key):
    client.put(f"{key}/_hidden", 1)
    for query in ("limit=1", "depth=3", "prefix=x", "keysOnly=true"):
        assert "nodes" not in ask(client, key, query).json["node"]
    assert ask(client, key, "count=true").json["keys"] == 0
    assert ask(client, key, "find=x").json["nodes"] == []
    assert ask(client, key, "marks=5").json | {"node": 0} == {
        "action": "get", "node": 0, "count": 0, "hidden": 1, "every": 5, "marks": [],
    }  # fmt: skip


def test_the_root_is_listed_too(fresh_server):
    client = fresh_server.client()
    for name in ("a", "_b", "c"):
        client.put(f"/{name}", name)
    assert ask(client, "/", "limit=1&hidden=true").headers["x-kvd-next"] == "_b"
    assert [n["key"] for n in ask(client, "/", "limit=2").json["node"]["nodes"]] == ["/a", "/c"]
    assert ask(client, "/", "count=true").json | {"node": 0} == {
        "action": "count", "node": 0, "keys": 2, "dirs": 0, "bytes": 2, "expiring": 0,
        "complete": True,
    }  # fmt: skip
    assert [n["key"] for n in ask(client, "/", "find=b&hidden=true").json["nodes"]] == ["/_b"]


def test_a_file_is_answered_as_ever_to_what_is_about_directories(client, key):
    client.put(key, "v", ttl=100)
    plain = ask(client, key).body
    for query in ("limit=3&after=x", "prefix=x", "marks=5", "count=true", "depth=3", "find=x",
                  "hidden=true", "find=x&after=/elsewhere"):  # fmt: skip
        assert ask(client, key, query).body == plain


def test_hidden_nodes_that_are_named_are_listed_as_ever(client, key):
    client.put(f"{key}/_h/a", 1)
    client.put(f"{key}/_h/_b", 1)
    assert list(flat(ask(client, f"{key}/_h", "limit=5").json["node"], f"{key}/_h")) == ["a"]


def test_head_answers_as_get_does_without_the_body(client, key):
    for number in range(150):
        client.put(f"{key}/{number:03}", "v")
    for query in ("limit=2", "limit=140", "count=true", "find=v", "marks=2", "keysOnly=true"):
        get, head = ask(client, key, query), ask(client, key, query, "HEAD")
        assert head.body == b""
        for name in ("x-kvd-next", "x-etcd-index", "content-type"):
            assert head.headers.get(name) == get.headers.get(name), (query, name)


# Values


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


# Counting, searching, marks


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


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("prefix", ["", "a", "_", "~"])
def test_marks_are_where_pages_begin(client, key, hidden, prefix):
    tree = grow(client, key, Random(7), 80)
    wish = f"&hidden={hidden}&prefix={quote(prefix)}"
    children = [n for n in below(tree, deep=False, hidden=True) if n.startswith(prefix)]
    shown = [n for n in children if hidden or not n.startswith("_")]
    for every in (1, 2, 3, 100):
        answer = ask(client, key, f"marks={every}{wish}").json
        assert answer["count"] == len(shown)
        assert answer["hidden"] == sum(n.startswith("_") for n in children)
        assert answer["every"] == every
        assert answer["marks"] == shown[every - 1 :: every]
        for mark, following in zip(answer["marks"], shown[every::every], strict=False):
            page = ask(client, key, f"limit={every}&after={quote(mark)}{wish}")
            assert next(iter(flat(page.json["node"], key))) == following


# While others write


def test_a_child_that_stays_is_in_exactly_one_page(server, client, key):
    lasting = [f"{number:04}" for number in range(0, 600, 3)]
    for name in lasting:
        client.put(f"{key}/{name}", "v")
    stop = threading.Event()

    def disturb() -> None:
        dice = Random(1)
        with contextlib.closing(server.client()) as other:
            while not stop.is_set():
                name = f"{dice.randrange(600):04}"
                if name not in lasting:
                    other.put(f"{key}/{name}", "w")
                    other.delete(f"{key}/{dice.choice((name, '0001'))}")

    writer = threading.Thread(target=disturb)
    writer.start()
    try:
        for limit in (7, 50):
            for _ in range(5):
                found: list[str] = []
                index = 0
                for answer in pages(client, key, f"limit={limit}"):
                    assert answer.index >= index
                    index = answer.index
                    found += flat(answer.json["node"], key)
                assert found == sorted(set(found))
                assert [name for name in found if name in set(lasting)] == lasting
            counted = ask(client, key, "count=true").json
            assert len(lasting) <= counted["keys"] <= 600
    finally:
        stop.set()
        writer.join()


# Many, and more than is served at once


LONG_AND_SHORT = sorted([f"{number:04}" for number in range(2500)] + ["1" * 500, "2" * 600])


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("crowded") / "data"
    keys = ((b"/d/%06d" % n, b"value of %d" % n) for n in range(60_000))
    hidden = ((b"/h/_%06d" % n, b"v") for n in range(60_000))
    long = ((b"/l/" + name.encode(), b"v") for name in LONG_AND_SHORT)
    bulk_load(directory, (*keys, *hidden, *long, (b"/h/a", b"1"), (b"/h/z", b"2")))
    yield from running(Server(directory))


def test_pages_of_a_crowded_directory(crowded):
    client = crowded.client()
    names = [f"{n:06}" for n in range(60_000)]
    found: list[str] = []
    for answer in pages(client, "/d", "limit=10000&keysOnly=true"):
        found += [node["key"][3:] for node in answer.json["node"]["nodes"]]
    assert found == names
    assert ask(client, "/d", "marks=500").json["marks"] == names[499::500]
    counted = ask(client, "/d", "count=true").json
    assert counted["keys"] == 60_000 or not counted["complete"]
    found = []
    for answer in pages(client, "/d", "find=9999&limit=10000"):
        found += [node["key"][3:] for node in answer.json["nodes"]]
    assert found == [name for name in names if "9999" in name]


def test_long_names_are_marked_and_paged_in_their_order(crowded):
    client = crowded.client()
    assert ask(client, "/l", "marks=1000").json["marks"] == LONG_AND_SHORT[999::1000]
    assert ask(client, "/l", "marks=1000&prefix=1").json["count"] == 1001
    found = [flat(a.json["node"], "/l") for a in pages(client, "/l", "limit=900&keysOnly=false")]
    assert [name for page in found for name in page] == LONG_AND_SHORT


def test_what_is_hidden_is_passed_over(crowded):
    client = crowded.client()
    page = ask(client, "/h", "limit=5")
    assert list(flat(page.json["node"], "/h")) == ["a", "z"]
    assert ask(client, "/h", "count=true").json["keys"] == 2
    marks = ask(client, "/h", "marks=1").json
    assert (marks["count"], marks["hidden"], marks["marks"]) == (2, 60_000, ["a", "z"])


def test_a_large_listing_with_extras_is_the_plain_one(crowded):
    client = crowded.client()
    assert ask(client, "/d", "depth=5").body == ask(client, "/d", "recursive=true").body


def test_many_scans_at_once_are_answered(crowded):
    answers: list[Answer] = []

    def scan() -> None:
        with contextlib.closing(crowded.client()) as client:
            answers.append(ask(client, "/h", "marks=1000&hidden=true"))

    threads = [threading.Thread(target=scan) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json["count"] == 60_002


def test_a_client_that_leaves_ends_its_scan(crowded):
    client = crowded.client()
    for _ in range(50):
        raw = Raw(crowded.port)
        raw.send(request("GET", "/v2/keys/d?find=nowhere")).reset()
    assert ask(client, "/h", "count=true").json["keys"] == 2
    assert json.loads(ask(client, "/d/000001").body)["node"]["value"] == "value of 1"
