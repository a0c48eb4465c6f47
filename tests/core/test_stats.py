"""The counters: one operation, one count; and the statistics of the member itself."""

import json

import pytest

from kvd.core.standing import Alone, Follower, Latency, Leader, Role, Traffic
from kvd.core.stats import SelfStats, StoreStats
from kvd.v2.commands import (
    CompareAndDelete,
    CompareAndSwap,
    Create,
    CreateInOrder,
    Delete,
    Get,
    Set,
    Update,
)

FIELDS = [
    "getsSuccess", "getsFail", "setsSuccess", "setsFail", "deleteSuccess", "deleteFail",
    "updateSuccess", "updateFail", "createSuccess", "createFail",
    "compareAndSwapSuccess", "compareAndSwapFail",
    "compareAndDeleteSuccess", "compareAndDeleteFail", "expireCount", "watchers",
]  # fmt: skip
OPERATIONS = [
    (Get(b"/k"), "gets"),
    (Set(b"/k", b""), "sets"),
    (Delete(b"/k"), "delete"),
    (Update(b"/k", b""), "update"),
    (Create(b"/k", b""), "create"),
    (CreateInOrder(b"/k", b""), "create"),
    (CompareAndSwap(b"/k", b"", b"", 0), "compareAndSwap"),
    (CompareAndDelete(b"/k", b"", 0), "compareAndDelete"),
]


def test_all_counters_are_there_in_etcd_s_order():
    body = StoreStats().body(watchers=0)
    assert body == json.dumps(dict.fromkeys(FIELDS, 0), separators=(",", ":")).encode()


@pytest.mark.parametrize(("command", "name"), OPERATIONS)
@pytest.mark.parametrize("succeeded", [True, False])
def test_an_operation_is_one_count(command, name, succeeded):
    stats = StoreStats()
    stats.count(command, succeeded=succeeded)
    expected = dict.fromkeys(FIELDS, 0)
    expected[f"{name}{'Success' if succeeded else 'Fail'}"] = 1
    assert json.loads(stats.body(watchers=0)) == expected


def test_expired_keys_and_watchers_are_shown():
    stats = StoreStats()
    stats.expirations += 4
    shown = json.loads(stats.body(watchers=7))
    assert (shown["expireCount"], shown["watchers"]) == (4, 7)
    assert json.loads(stats.body(watchers=6))["watchers"] == 6


def test_the_member_s_own_statistics():
    started_ns = 1_764_000_000_500_000_000
    alone = Alone(0xA6328F, started_ns)
    stats = SelfStats(name="n", member_id=0xA6328F, standing=alone)
    assert stats.self_body(started_ns + 143_100_000_000) == (
        b'{"name":"n","id":"a6328f","state":"StateLeader",'
        b'"startTime":"2025-11-24T16:00:00.5Z",'
        b'"leaderInfo":{"leader":"a6328f","uptime":"2m23.1s",'
        b'"startTime":"2025-11-24T16:00:00.5Z"},'
        b'"recvAppendRequestCnt":0,"sendAppendRequestCnt":0}'
    )
    assert json.loads(stats.self_body(started_ns - 5))["leaderInfo"]["uptime"] == "0s"
    assert stats.leader_body() == b'{"leader":"a6328f","followers":{}}'


class Replica(Alone):
    """Another standing than that of a server without replicas."""

    def __init__(self, **shown):
        super().__init__(1, 0)
        self.__dict__.update(shown)


@pytest.mark.parametrize(
    ("role", "state"),
    [
        (Role.FOLLOWING, "StateFollower"),
        (Role.JOINING, "StateFollower"),
        (Role.FENCED, "StateFollower"),
        (Role.PROMOTING, "StateCandidate"),
        (Role.LEADING, "StateLeader"),
    ],
)
def test_a_replica_s_state_has_etcd_s_words(role, state):
    stats = SelfStats(name="n", member_id=1, standing=Replica(role=role))
    assert json.loads(stats.self_body(5))["state"] == state
    assert (stats.leader_body() is not None) == (role is Role.LEADING)


def test_a_replica_shows_the_frames_that_it_receives_and_sends():
    standing = Replica(
        role=Role.FOLLOWING,
        received=Traffic(5944, 9.009, 570.625),
        sent=Traffic(3, None, None),
        _leader=Leader(0x8A69, 1_764_000_000_500_000_000),
    )
    stats = SelfStats(name="n", member_id=1, standing=standing)
    shown = json.loads(stats.self_body(1_764_000_010_500_000_000))
    assert shown["leaderInfo"] == {
        "leader": "8a69",
        "uptime": "10s",
        "startTime": "2025-11-24T16:00:00.5Z",
    }
    # A rate that is not known is left out, and etcd's order is kept.
    assert list(shown.items())[5:] == [
        ("recvAppendRequestCnt", 5944),
        ("recvPkgRate", 9.009),
        ("recvBandwidthRate", 570.625),
        ("sendAppendRequestCnt", 3),
    ]


def test_without_a_leader_none_is_shown():
    stats = SelfStats(name="n", member_id=1, standing=Replica(_leader=None))
    assert json.loads(stats.self_body(5))["leaderInfo"]["leader"] == ""


def test_the_leader_shows_its_followers_in_milliseconds():
    followers = (
        Follower(0x6E3B, Latency(0.0015, 0.002, 0.0005, 0.001, 0.5), successes=745, failures=2),
        Follower(0xA826, None, successes=0, failures=1),
    )
    standing = Replica(followers=lambda: followers)
    stats = SelfStats(name="n", member_id=0x92, standing=standing)
    shown = json.loads(stats.leader_body())
    assert shown["leader"] == "92"
    assert shown["followers"]["6e3b"] == {
        "latency": {
            "current": 1.5,
            "average": 2.0,
            "standardDeviation": 0.5,
            "minimum": 1.0,
            "maximum": 500.0,
        },
        "counts": {"fail": 2, "success": 745},
    }
    never_heard = shown["followers"]["a826"]
    assert never_heard["latency"]["minimum"] == 2**63
    assert never_heard["counts"] == {"fail": 1, "success": 0}


# The same, as a server counts.


@pytest.fixture
def counted(server, client):
    """What a request adds to the counters."""

    def shown():
        answer = client.request("GET", "/v2/stats/store")
        assert list(answer.json) == FIELDS
        return answer.json

    def count(*requests):
        before = shown()
        for method, target in requests:
            client.request(method, target)
        after = shown()
        return {name: after[name] - before[name] for name in FIELDS if after[name] != before[name]}

    client.put("/st/f", "v")
    return count


K = "/v2/keys/st"


@pytest.mark.parametrize(
    ("method", "target", "counter"),
    [
        ("GET", f"{K}/f", "getsSuccess"),
        ("HEAD", f"{K}/f", "getsSuccess"),
        ("GET", f"{K}?recursive=true", "getsSuccess"),
        ("GET", f"{K}/f?quorum=true", "getsSuccess"),
        ("GET", f"{K}/none", "getsFail"),
        ("GET", f"{K}/f/g", "getsFail"),
        ("PUT", f"{K}/f?value=v", "setsSuccess"),
        ("PUT", f"{K}/f?refresh=true&ttl=50", "setsSuccess"),
        ("PUT", f"{K}?value=v", "setsFail"),
        ("PUT", f"{K}/f/g", "setsFail"),
        ("PUT", "/v2/keys/?value=v", "setsFail"),
        ("PUT", f"{K}/none?refresh=true&ttl=5", "setsFail"),
        ("PUT", f"{K}/f?prevExist=true&value=v", "updateSuccess"),
        ("PUT", f"{K}/none?prevExist=true", "updateFail"),
        ("PUT", f"{K}?prevExist=true&value=v", "updateFail"),
        ("PUT", "/v2/keys/?prevExist=true", "updateFail"),
        ("POST", f"{K}/queue", "createSuccess"),
        ("POST", f"{K}/f", "createFail"),
        ("PUT", f"{K}/f?prevExist=false", "createFail"),
        ("PUT", f"{K}/f/g?prevExist=false", "createFail"),
        ("PUT", f"{K}/f?prevValue=v&value=v", "compareAndSwapSuccess"),
        ("PUT", f"{K}/f?prevValue=x", "compareAndSwapFail"),
        ("PUT", f"{K}?prevValue=x", "compareAndSwapFail"),
        ("DELETE", f"{K}/none", "deleteFail"),
        ("DELETE", f"{K}", "deleteFail"),
        ("DELETE", f"{K}?dir=true", "deleteFail"),
        ("DELETE", "/v2/keys/?recursive=true", "deleteFail"),
        ("DELETE", f"{K}/f", "deleteSuccess"),
        ("DELETE", f"{K}/f?prevValue=v", "compareAndDeleteSuccess"),
        ("DELETE", f"{K}/f?prevValue=x", "compareAndDeleteFail"),
        ("DELETE", f"{K}?prevValue=x", "compareAndDeleteFail"),
    ],
)
def test_a_request_is_one_count(counted, method, target, counter):
    assert counted((method, target)) == {counter: 1}


def test_what_is_no_operation_is_not_counted(counted):
    assert counted(
        ("GET", f"{K}/f?recursive=x"),
        ("PUT", f"{K}/f?ttl=x"),
        ("PATCH", f"{K}/f"),
        ("OPTIONS", f"{K}/f"),
        ("GET", f"{K}//f"),
        ("GET", "/version"),
        ("GET", "/health"),
        ("GET", "/v2/keys/none?wait=true&stream=x"),
    ) == {}  # fmt: skip


def test_an_expiry_is_counted_as_such(server, client):
    def shown():
        return client.request("GET", "/v2/stats/store").json

    before = shown()
    watch = server.watch("/st/short", stream="true")
    client.put("/st/short", "v", ttl=0)
    assert [watch.event()["action"] for _ in range(2)] == ["set", "expire"]
    after = shown()
    assert after["expireCount"] == before["expireCount"] + 1
    assert after["deleteSuccess"] == before["deleteSuccess"]
    assert after["watchers"] == before["watchers"] + 1


def test_counters_start_again_with_the_server(make_server):
    server = make_server().start()
    client = server.client()
    client.put("/a", "1")
    client.get("/a")
    server.terminate()
    server.start()
    shown = server.client().request("GET", "/v2/stats/store").json
    assert set(shown.values()) == {0}
