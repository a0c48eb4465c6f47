"""Steps for tests of watches: changes below a directory, and what a watcher receives of them."""

from tests.support.server import Client, Watch

Received = list[tuple[str, str]]
"""Actions and keys of events."""


def index_of(client: Client) -> int:
    return client.get("/no-such-key").index


def watchers(client: Client) -> int:
    return client.request("GET", "/v2/stats/store").json["watchers"]


def do(client: Client, at: str, *steps: str) -> None:
    """Do what steps such as `PUT /a?value=1` say, below a directory."""
    for step in steps:
        method, target = step.removeprefix("REFUSED ").split(" ")
        answer = client.request(method, f"/v2/keys{at}{target}")
        assert (answer.status in (200, 201)) != step.startswith("REFUSED "), (step, answer)


def mark(client: Client, key: str) -> int:
    """Make an event for every watcher of a key; return its index."""
    answer = client.put(key, prevExist="true", ttl=1000)
    if answer.status == 404:
        answer = client.put(key, "")
    assert answer.status in (200, 201), answer
    return answer.index


def received_until(watch: Watch, at: str, last_index: int) -> Received:
    """The events of a stream before the one with an index."""
    received = []
    while (event := watch.event())["node"]["modifiedIndex"] != last_index:
        received.append((event["action"], event["node"]["key"].removeprefix(at)))
    return received


def indexes(watch: Watch, last: int) -> list[int]:
    """The indexes that a stream tells, up to the last."""
    seen = [watch.event()["node"]["modifiedIndex"]]
    while seen[-1] != last:
        seen.append(watch.event()["node"]["modifiedIndex"])
    return seen
