"""JSON as etcd writes it: fields and their order, times."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvd.json_text import escape
from kvd.storage.format.event import Event
from kvd.storage.format.node import ROOT, Node
from kvd.storage.format.records import REMOVALS, Change, Kind
from kvd.v2.errors import TABLE, ApiError
from kvd.v2.response import (
    ACTIONS,
    action_body,
    error_body,
    event_body,
    event_parts,
    get_parts,
    node_object,
    timestamp,
    ttl_s,
)

S = 1_000_000_000
NOW_NS = 1_764_000_000 * S

FILE = Node(b"v", 3, 7)
DIR = Node(None, 3, 7, 0, 5)


def test_fields_of_a_file_come_in_order():
    file = Node(b"<", 3, 7, NOW_NS + 2 * S)
    assert node_object(b"/k", file, NOW_NS) == (
        b'{"key":"/k","value":"\\u003c","expiration":"%b","ttl":2,'
        b'"modifiedIndex":7,"createdIndex":3}' % timestamp(NOW_NS + 2 * S)
    )


def test_fields_of_a_directory_come_in_order():
    directory = DIR._replace(expiration_ns=NOW_NS + S)
    assert node_object(b"/d", directory, NOW_NS) == (
        b'{"key":"/d","dir":true,"expiration":"%b","ttl":1,"modifiedIndex":7,"createdIndex":3}'
        % timestamp(NOW_NS + S)
    )


def test_the_root_has_a_key_and_no_indexes():
    assert node_object(b"/", ROOT, NOW_NS) == b'{"key":"/","dir":true}'


def test_an_empty_value_is_shown():
    assert b'"value":"",' in node_object(b"/k", Node(b"", 3, 7), NOW_NS)


def test_a_read_of_a_file():
    assert get_parts(b"/a\xff", FILE, NOW_NS) == [
        b'{"action":"get","node":{"key":"/a\\ufffd","value":"v",'
        b'"modifiedIndex":7,"createdIndex":3}}\n'
    ]


KINDS = list(ACTIONS)
NAMES = ["set", "create", "update", "compareAndSwap", "delete", "compareAndDelete", "expire"]


@pytest.mark.parametrize(("kind", "name"), [*zip(KINDS, NAMES, strict=True)])
@pytest.mark.parametrize("prev", [None, FILE, DIR], ids=["none", "file", "dir"])
def test_an_event_shows_what_was_and_what_is(kind, name, prev):
    change = Change(kind, 9, b"/k", b"w", False, 3)
    body = event_body(Event(change, prev, NOW_NS))
    value = "" if kind in REMOVALS else '"value":"w",'
    before = {None: "", FILE: '"value":"v",', DIR: '"dir":true,'}[prev]
    prev_node = f',"prevNode":{{"key":"/k",{before}"modifiedIndex":7,"createdIndex":3}}'
    assert body.decode() == (
        f'{{"action":"{name}","node":{{"key":"/k",{value}"modifiedIndex":9,"createdIndex":3}}'
        f"{prev_node if prev else ''}}}\n"
    )
    assert action_body(kind) == b'{"action":"%b"}\n' % name.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_of_a_directory_says_so(kind):
    body = event_body(Event(Change(kind, 9, b"/d", None, True, 3), DIR, NOW_NS))
    shown = json.loads(body)
    for part in (shown["node"], shown["prevNode"]):
        assert part["dir"] is True
        assert "value" not in part
        assert "nodes" not in part


def test_the_ttl_of_an_event_counts_from_its_own_time():
    change = Change(Kind.SET, 9, b"/k", b"w", False, 9, NOW_NS + 5 * S)
    prev = Node(b"v", 3, 7, NOW_NS - S // 2)
    shown = json.loads(event_body(Event(change, prev, NOW_NS)))
    assert shown["node"]["ttl"] == 5
    assert "ttl" not in shown["prevNode"]
    assert shown["prevNode"]["expiration"] == timestamp(NOW_NS - S // 2).decode()


@pytest.mark.parametrize("code", TABLE)
def test_an_error_names_number_message_cause_and_index(code):
    message = TABLE[code].message
    assert error_body(ApiError(code, b"/a<", 6)).decode() == (
        f'{{"errorCode":{code},"message":"{message}","cause":"/a\\u003c","index":6}}\n'
    )
    assert error_body(ApiError(code)).decode() == (
        f'{{"errorCode":{code},"message":"{message}","index":0}}\n'
    )


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (S // 10 * 9, "1970-01-01T00:00:00.9Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (S - 1, "1970-01-01T00:00:00.999999999Z"),
        (100, "1970-01-01T00:00:00.0000001Z"),
        (951_782_400 * S, "2000-02-29T00:00:00Z"),
        (2**63 - 1, "2262-04-11T23:47:16.854775807Z"),
        (10 * S, "1970-01-01T00:00:10Z"),
        (10 * S + S // 100, "1970-01-01T00:00:10.01Z"),
    ],
)
def test_times_are_rfc_3339(ns, text):
    assert timestamp(ns) == text.encode()


@given(st.integers(0, 2**63 - 1))
def test_a_time_shows_each_nanosecond(ns):
    text = timestamp(ns).decode()
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = (datetime.fromisoformat(whole + "+00:00") - datetime(1970, 1, 1, tzinfo=UTC)) // (
        timedelta(seconds=1)
    )
    assert seconds * S + int(fraction.ljust(9, "0")) == ns
    assert not fraction.endswith("0")


@pytest.mark.parametrize(
    ("left_ns", "shown_s"),
    [
        (5 * S, 5),
        (1_999_000_000, 2),
        (S + 1, 2),
        (S, 1),
        (S - 1, 1),
        (100_000_000, 1),
        (1, 1),
        (0, 0),
        (-1, 0),
        (-400_000_000, 0),
        (-S + 1, 0),
        (-S, 0),
        (-4_700_000_000, 0),
    ],
)
def test_a_ttl_is_rounded_up_and_never_negative(left_ns, shown_s):
    assert ttl_s(NOW_NS + left_ns, NOW_NS) == shown_s
    shown = json.loads(node_object(b"/k", Node(b"", 1, 1, NOW_NS + left_ns), NOW_NS))
    assert shown.get("ttl", 0) == shown_s
    assert ("ttl" in shown) == (shown_s != 0)
    assert "expiration" in shown


def test_what_is_large_is_the_same_in_parts():
    value, large = b"v", b"<" * 100_000
    changed = Change(Kind.SET, 9, b"/k<", large, False, 3, NOW_NS + 5 * S)
    for event in (
        Event(changed, Node(large, 3, 7, NOW_NS - S), NOW_NS),
        Event(changed._replace(expiration_ns=0), None, NOW_NS),
        Event(changed._replace(value=value), Node(large, 3, 7), NOW_NS),
        Event(Change(Kind.DELETE, 9, b"/k", None, False, 3), Node(large, 3, 7), NOW_NS),
    ):
        assert event_body(event, S) is None
        shown = text_of(event_parts(event, S))
        short = Event(
            event.change._replace(value=event.change.value and value),
            event.prev and event.prev._replace(value=value),
            event.time_ns,
        )
        expected = event_body(short, S)
        assert expected is not None
        assert shown.replace(escape(large), value) == expected
    node = Node(large, 3, 7, NOW_NS + 5 * S)
    shown = text_of(get_parts(b"/k<", node, NOW_NS, S))
    whole = node_object(escape(b"/k<"), node, NOW_NS, S)
    assert shown == b'{"action":"get","node":%b}\n' % whole


def text_of(parts):
    return b"".join(part if isinstance(part, bytes) else escape(part.raw) for part in parts)
