"""Limits: each is a flag, answered with a clear error and counted.

And all clients together can take neither the server's memory nor its files.

`pytest -m limits_full` does it with a hundred thousand connections and a million children.
"""

import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from operator import attrgetter

import pytest

from kvd.config.flag import LIMITS
from kvd.config.flags import FLAGS
from kvd.storage.tools.bulk_load import bulk_load
from tests.monitoring.test_metrics import scrape
from tests.support.log_texts import log_text
from tests.support.memory import MIB, assert_refused, launch, rejected, resident_bytes
from tests.support.raw import Raw, request
from tests.support.server import ROOT

# A flag that bounds something is called so, whatever its group is; of TLS it is versions.
BOUNDS = re.compile(r"(?:^|-)max(?:-|$)|-timeout-|^event-history-|^snapshot-count$")


@pytest.mark.parametrize(
    "flag",
    [
        flag
        for flag in FLAGS
        if flag.group == LIMITS or (BOUNDS.search(flag.name) and "tls" not in flag.name)
    ],
    ids=attrgetter("name"),
)
def test_each_flag_is_a_row_of_the_manual(flag):
    rows = (ROOT / "kvd/manual/limits.md").read_text().splitlines()
    assert any(row.startswith("| ") and f"`--{flag.name}`" in row for row in rows)


def test_each_reason_that_the_manual_names_is_counted(client):
    named = re.findall(r': "(\w+)"', (ROOT / "kvd/manual/limits.md").read_text())
    counted = scrape(client)
    assert named
    for reason in named:
        assert f'kvd_rejected_requests_total{{reason="{reason}"}}' in counted


@pytest.mark.parametrize(
    ("method", "params"),
    [("PUT", {}), ("PUT", {"prevExist": "true"}), ("PUT", {"prevIndex": "2"}), ("POST", {})],
    ids=["set", "update", "compare-and-swap", "in order"],
)
@pytest.mark.parametrize("place", ["form", "query"])
def test_a_value_up_to_its_limit_is_taken(make_server, method, params, place):
    client = make_server("--max-value-bytes", "1000").start().client()
    client.put("/k", "v")

    def write(size: int):
        query = "&".join(f"{name}={value}" for name, value in params.items())
        if place == "query":
            return client.request(method, f"/v2/keys/k2?{query}&value={'v' * size}")
        return client.request(method, f"/v2/keys/k?{query}", {"value": "v" * size})

    cause = "the value has 1001 bytes, 1000 are allowed"
    assert_refused(write(1001), 210, cause)
    assert rejected(client, "value_too_large") == 1
    assert client.get("/k").json["node"]["value"] == "v"
    assert client.get("/k").index == 2
    # What else it meets it would meet without a limit, too.
    assert write(1000).json.get("cause") != cause


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_value_in_a_short_query_meets_its_limit(make_server, method):
    client = make_server("--max-value-bytes", "50").start().client()
    assert client.request(method, f"/v2/keys/k?value={'v' * 50}").status == 201
    cause = "the value has 51 bytes, 50 are allowed"
    assert_refused(client.request(method, f"/v2/keys/k?value={'v' * 51}"), 210, cause)


def test_a_body_up_to_its_limit_is_taken(make_server):
    client = make_server("--max-body-bytes", "2000").start().client()
    assert client.put("/k", "v" * 1994).status == 201
    assert_refused(client.put("/k", "v" * 1995), 210, "http: POST too large")
    assert client.request("POST", "/v2/members", b"x" * 3000, {"Content-Type": "a/b"}).status == 413
    assert rejected(client, "body_too_large") == 2
    assert client.get("/k").json["node"]["value"] == "v" * 1994


def test_a_key_up_to_its_depth_is_taken(make_server):
    server = make_server().start("--max-key-depth", "5000")
    deep = "/k" * 4500
    assert server.client().put(deep, 1).status == 201
    server.terminate()
    client = server.start().client()
    assert client.put("/a" * 4096, 1).status == 201
    for answer in (client.put("/a" * 4097, 1), client.post("/a" * 4097, 1)):
        assert_refused(answer, 209, "the key has 4097 components, 4096 are allowed")
    assert rejected(client, "key_too_deep") == 2
    # What has been let in before can be read, and removed.
    assert client.get(deep).json["node"]["value"] == "1"
    assert client.delete(deep).status == 200


def test_watchers_of_a_key_are_limited_and_those_of_others_are_not(make_server):
    server = make_server("--max-watchers-per-key", "2").start()
    watches = [server.watch("/w") for _ in range(2)]
    client = server.client()
    refused = client.get("/w", wait="true")
    assert_refused(refused, 300, "too many watchers of this key")
    assert rejected(client, "too_many_watchers_of_key") == 1
    assert server.watch("/v").head.status == 200
    client.put("/w", 1)
    assert [watch.event()["action"] for watch in watches] == ["set", "set"]
    assert server.watch("/w").head.status == 200


def test_all_watchers_are_limited_and_counted(make_server):
    server = make_server("--max-watchers", "1").start()
    watch = server.watch("/w")
    client = server.client()
    assert_refused(client.get("/v", wait="true"), 300, "too many watchers")
    assert rejected(client, "too_many_watchers") == 1
    client.put("/w", 1)
    assert watch.event()["action"] == "set"


def test_a_stream_is_cut_at_its_backlog_and_counted(make_server):
    server = make_server("--max-stream-bytes", str(128 << 10)).start()
    client = server.client()
    with Raw(server.port, receive_buffer=4096) as raw:
        raw.send(request("GET", "/v2/keys/s?wait=true&stream=true")).head()
        while rejected(client, "stream_not_read") == 0:
            client.put("/s", "v" * 50_000)
        raw.rest()
    assert client.request("GET", "/v2/stats/store").json["watchers"] == 0


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_a_large_event_is_one_object_for_all_watchers(make_server, loop):
    server = make_server("--write-timeout-s", "600", launch=launch(loop)).start()
    client = server.client()
    with contextlib.ExitStack() as stack:
        lazy = []
        for _ in range(150):
            lazy.append(stack.enter_context(Raw(server.port, receive_buffer=4096)))
            lazy[-1].send(request("GET", "/v2/keys/large?wait=true")).head()
        reading = [server.watch("/large", stream="true") for _ in range(3)]
        client.put("/large", "warm")
        for raw in lazy:
            list(raw.chunks())
            raw.send(request("GET", "/v2/keys/large?wait=true")).head()
        for watch in reading:
            watch.event()
        before = resident_bytes(server)
        value = "v" * (8 * MIB)
        client.put("/large", value)
        # Those who read get all of it, whatever the others do.
        for watch in reading:
            assert watch.event()["node"]["value"] == value
        assert client.get("/none").status == 404
        assert resident_bytes(server) - before < 150 * MIB, "not a copy each: 1,200 MiB"
        assert json.loads(b"".join(lazy[0].chunks()))["node"]["value"] == value
        client.put("/large", "small")
        assert reading[0].event()["node"]["value"] == "small"


DEPTH = 2000


def test_every_endpoint_goes_two_thousand_levels_deep(make_server):
    server = make_server("--snapshot-count", "5").start()
    client = server.client()
    directory = "/d" * (DEPTH - 1)
    leaf = directory + "/leaf"
    watch_leaf = server.watch(leaf)
    watch_all = server.watch("/d", recursive="true", stream="true")
    assert client.put(leaf, 1).status == 201
    assert watch_leaf.event()["node"]["key"] == leaf
    assert watch_all.event()["node"]["key"] == leaf
    assert client.get(leaf).json["node"]["value"] == "1"
    assert client.request("HEAD", f"/v2/keys{leaf}").status == 200
    assert client.get(directory).json["node"]["nodes"][0]["key"] == leaf
    whole = client.get("/", recursive="true", sorted="true").body
    assert whole.count(b'"nodes":[') == DEPTH
    assert client.put(leaf, 2, prevExist="true").json["action"] == "update"
    assert client.put(leaf, 3, prevValue="2").json["action"] == "compareAndSwap"
    assert client.put(leaf, prevExist="true", refresh="true", ttl=600).status == 200
    posted = client.post(directory, "in order").json["node"]["key"]
    assert client.get(posted).json["node"]["value"] == "in order"
    assert client.put(f"{leaf}/below", 1).json["errorCode"] == 104
    assert client.delete(directory, dir="true").json["errorCode"] == 108
    assert client.delete(posted, prevValue="in order").json["action"] == "compareAndDelete"
    assert client.get(leaf, wait="true", waitIndex=2).json["action"] == "set"
    assert client.get("/d", wait="true", recursive="true", waitIndex=3).json["action"] == "update"
    server.wait_for_log(log_text("wrote a snapshot"))
    # Tests cannot parse it: the JSON of Python's library ends at a thousand levels.
    before = client.get("/", recursive="true").body
    server.kill()
    server.start("--rebuild-index")
    client = server.client()
    assert len(client.get("/", recursive="true").body) == len(before)
    gone = server.watch(leaf)
    assert client.put("/d", dir="true", prevExist="true", ttl=1).status == 200
    assert gone.event()["action"] == "expire"
    assert client.put(leaf, 1).status == 201
    gone = server.watch(leaf)
    assert client.delete("/d", recursive="true").json["action"] == "delete"
    assert gone.event()["action"] == "delete"
    assert client.get("/").json["node"].get("nodes") is None
    assert server.terminate() == 0
    for verb in ("verify", "digest", "dump"):
        run = subprocess.run(
            [sys.executable, "-m", "kvd.ctl.main", verb, str(server.data_dir)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "children",
    [20_000, pytest.param(1_000_000, marks=[pytest.mark.limits_full, pytest.mark.timeout(900)])],
)
def test_others_are_served_while_a_wide_directory_is_listed_and_removed(
    make_server, tmp_path, children
):
    bulk_load(tmp_path / "data", ((b"/wide/%07d" % i, b"v") for i in range(children)))
    server = make_server().start()
    client, other = server.client(), server.client()
    other.put("/other", 1)
    served = 0
    outcome: list[bytes] = []

    def meanwhile(act: Callable[[], bytes]) -> bytes:
        nonlocal served
        outcome.clear()
        acting = threading.Thread(target=lambda: outcome.append(act()))
        acting.start()
        while acting.is_alive():
            # A read, because a slow disk would make the writes too few to tell anything.
            assert other.get("/other").status == 200
            served += 1
        return outcome[0]

    listed = meanwhile(lambda: client.get("/wide").body)
    assert listed.count(b'"key":') == children + 1
    assert client.get(f"/wide/{children - 1:07}").json["node"]["value"] == "v"
    removed = meanwhile(lambda: client.delete("/wide", recursive="true").body)
    assert json.loads(removed)["action"] == "delete"
    assert client.get("/wide").status == 404
    assert served > 4
    assert client.put("/wide/again", 1).status == 201
    server.terminate()
    client = server.start().client()
    assert [node["key"] for node in client.get("/wide").json["node"]["nodes"]] == ["/wide/again"]
