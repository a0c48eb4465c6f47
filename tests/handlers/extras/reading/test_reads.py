"""Extras of reads, over HTTP: pages, levels, hidden nodes, values, counts, searches, marks.

What is answered is compared with what a plain dict of the same keys says, the slow way.
"""

import contextlib
import threading
from random import Random
from urllib.parse import quote, unquote_to_bytes

import pytest

from tests.support.listings import ask, below, flat, grow, pages, refusal


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
