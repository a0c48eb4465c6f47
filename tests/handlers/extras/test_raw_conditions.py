"""Raw values: entity tags and conditions."""

import pytest

from tests.support.raw_values import get, put


@pytest.mark.parametrize(
    ("tags", "matches"),
    [
        ('"{}"', True),
        ('W/"{}"', True),
        ('"1", "{}"', True),
        ("*", True),
        (' "{}" ', True),
        ('"1"', False),
        ("{}", False),
        ('"{}x"', False),
        ('w/"{}"', False),
        ("", False),
    ],
)
def test_an_unchanged_value_is_not_sent_again(server, key, tags, matches):
    client = server.client()
    put(client, key, b"v", "?ttl=1000")
    tag = get(client, key).headers["etag"].strip('"')
    for method in ("GET", "HEAD"):
        for target in (f"/v2/raw{key}", f"/v2/keys{key}?raw=true"):
            named = {"If-None-Match": tags.format(tag)}
            answer = client.request(method, target, headers=named)
            assert answer.status == (304 if matches else 200)
            assert answer.headers["etag"] == f'"{tag}"'
            assert answer.headers["x-kvd-ttl"]
            if matches:
                assert answer.body == b""
                assert "content-length" not in answer.headers
    # The connection is good for more.
    put(client, key, b"w")
    assert get(client, key, If_None_Match=f'"{tag}"').body == b"w"


def test_entity_tags_mean_nothing_to_other_reads(client, key):
    client.put(f"{key}/x", "v")
    for target in (f"/v2/keys{key}/x", f"/v2/keys{key}", f"/v2/keys{key}?recursive=true"):
        plain = client.request("GET", target)
        with_tag = client.request("GET", target, headers={"If-None-Match": "*"})
        assert (with_tag.status, with_tag.body) == (200, plain.body)
        assert "etag" not in with_tag.headers


def test_if_match_is_a_condition_on_the_index(client, key):
    first = put(client, key, b"1").index
    failed = put(client, key, b"2", If_Match=f'"{first + 7}"')
    assert (failed.status, failed.json["errorCode"]) == (412, 101)
    assert failed.json["cause"] == f"[{first + 7} != {first}]"
    swapped = put(client, key, b"2", "?prevValue=1", If_Match=f'"{first}"')
    assert swapped.json["action"] == "compareAndSwap"
    assert put(client, key, b"3", If_Match="*").json["action"] == "update"
    assert get(client, key).body == b"3"
    now = get(client, key).headers["etag"]
    assert get(client, key, "DELETE", If_Match=f'"{first}"').json["errorCode"] == 101
    assert get(client, key, "DELETE", If_Match=now).json["action"] == "compareAndDelete"
    assert put(client, key, b"4", If_Match="*").json["errorCode"] == 100


def test_if_none_match_makes_a_key_once(client, key):
    assert put(client, key, b"1", If_None_Match="*").json["action"] == "create"
    again = put(client, key, b"2", If_None_Match="*")
    assert (again.status, again.json["errorCode"]) == (412, 105)
    assert get(client, key).body == b"1"


@pytest.mark.parametrize(
    ("asked", "headers", "cause"),
    [
        ("PUT ", {"If-Match": "7"}, 'invalid value for "If-Match"'),
        ("PUT ", {"If-Match": 'W/"7"'}, 'invalid value for "If-Match"'),
        ("PUT ", {"If-Match": '"7", "8"'}, 'invalid value for "If-Match"'),
        ("PUT ", {"If-Match": '"0"'}, 'invalid value for "If-Match"'),
        ("DELETE ", {"If-Match": '"x"'}, 'invalid value for "If-Match"'),
        ("PUT ", {"If-None-Match": '"7"'}, 'invalid value for "If-None-Match"'),
        ("DELETE ", {"If-None-Match": "*"}, 'invalid value for "If-None-Match"'),
        ("PUT ", {"If-None-Match": "*", "If-Match": "*"}, 'invalid value for "If-None-Match"'),
        ("PUT ?prevIndex=8", {"If-Match": '"7"'}, '"If-Match" contradicts the query'),
        ("DELETE ?prevIndex=8", {"If-Match": '"7"'}, '"If-Match" contradicts the query'),
        ("PUT ?prevExist=false", {"If-Match": '"7"'}, '"If-Match" contradicts the query'),
        ("PUT ?prevExist=false", {"If-Match": "*"}, '"If-Match" contradicts the query'),
        ("PUT ?prevExist=true", {"If-None-Match": "*"}, '"If-None-Match" contradicts the query'),
        ("PUT ?prevValue=v", {"If-None-Match": "*"}, '"If-None-Match" contradicts the query'),
        ("PUT ?dir=true", {}, '"dir" cannot be used with "raw"'),
        ("PUT ?value=x", {}, '"value" cannot be used with "raw"'),
        ("PUT ?refresh=true&ttl=5", {}, '"refresh" cannot be used with "raw"'),
    ],
)
def test_what_makes_no_sense_changes_nothing(client, key, asked, headers, cause):
    method, query = asked.split(" ")
    put(client, key, b"v")
    answer = client.request(method, f"/v2/raw{key}{query}", b"new", headers)
    error = answer.json
    assert (answer.status, error["errorCode"], error["cause"]) == (400, 209, cause)
    assert (error["index"], answer.index) == (0, 0)
    assert get(client, key).body == b"v"


def test_conditions_that_agree_count_together(client, key):
    index = put(client, key, b"1").index
    for query in (f"?prevIndex={index}", "?prevExist=true", "?prevIndex=0"):
        answer = put(client, key, b"1", query, If_Match=f'"{index}"')
        assert answer.json["action"] == "compareAndSwap"
        index = answer.index
