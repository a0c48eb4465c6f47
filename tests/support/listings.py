"""Trees of keys, and listings of them by pages, for tests of reading extras."""

from collections.abc import Iterator
from random import Random
from typing import Any
from urllib.parse import quote

from tests.support.server import Answer, Client

Tree = dict[str, str | None]
"""All nodes below a directory: their paths, relative to it; values, None for directories."""

NAMES = ["a", "b", "B", "a-", "_h", "_", "`", "~", "é", "x y", "<&>", "0" * 20, "n%2Fm"]


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
