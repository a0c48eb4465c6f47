"""JSON as Go's encoder writes it: escapes, fields and their order, times."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvd.storage.format.event import Event
from kvd.storage.format.node import ROOT, Node
from kvd.storage.format.records import REMOVALS, Change, Kind
from kvd.v2.errors import TABLE, ApiError
from kvd.v2.response import (
    ACTIONS,
    action_body,
    cut,
    error_body,
    escape,
    event_body,
    event_parts,
    get_parts,
    go_duration,
    node_object,
    timestamp,
    ttl_s,
)

S = 1_000_000_000
NOW_NS = 1_764_000_000 * S

SHORT = {0x22: b'\\"', 0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t"}


def slow_escape(raw: bytes) -> bytes:
    """What `escape` must return, one character after the other."""
    escaped = b""
    position = 0
    while position < len(raw):
        for length in range(1, 5):
            piece = raw[position : position + length]
            try:
                character = piece.decode()
            except UnicodeDecodeError:
                continue
            position += len(piece)
            escaped += slow_escape_of(ord(character), piece)
            break
        else:
            position += 1
            escaped += b"\\ufffd"
    return escaped


def slow_escape_of(code: int, piece: bytes) -> bytes:
    if code in SHORT:
        return SHORT[code]
    if code < 0x20 or code in (0x3C, 0x3E, 0x26, 0x2028, 0x2029):
        return b"\\u%04x" % code
    return piece


@pytest.mark.parametrize("byte", range(256))
def test_every_byte_is_escaped_as_go_does(byte):
    raw = bytes((byte,))
    assert escape(raw) == slow_escape(raw)
    assert escape(b"a" + raw + b"z") == slow_escape(b"a" + raw + b"z")
    assert escape(raw + "ü\u2028".encode()) == slow_escape(raw + "ü\u2028".encode())


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"/a/b", b"/a/b"),
        (b"<a href='x'>&amp;</a>", rb"\u003ca href='x'\u003e\u0026amp;\u003c/a\u003e"),
        (b'"\\', rb"\"\\"),
        (b"\b\f\n\r\t\v\0\x1f\x7f", b"\\u0008\\u000c\\n\\r\\t\\u000b\\u0000\\u001f\x7f"),
        ("\u2027\u2028\u2029\u202a".encode(), "\u2027\\u2028\\u2029\u202a".encode()),
        ("\ufffd".encode(), "\ufffd".encode()),
        ("€\U0001f600".encode(), "€\U0001f600".encode()),
        (b"\xff\xfe", rb"\ufffd\ufffd"),
        (b"\xed\xa0\x80", rb"\ufffd\ufffd\ufffd"),  # a surrogate
        (b"\xc0\xaf", rb"\ufffd\ufffd"),  # overlong
        (b"\xf4\x90\x80\x80", rb"\ufffd\ufffd\ufffd\ufffd"),  # too large
        (b"\xe2\x82", rb"\ufffd\ufffd"),  # truncated
        (b"\xf0\xe2\x80\xa8", rb"\ufffd\u2028"),
        (b"\\\xff", rb"\\\ufffd"),
        (b"\\ufffd", rb"\\ufffd"),
    ],
)
def test_escapes(raw, escaped):
    assert escape(raw) == escaped


HARD = st.lists(
    st.one_of(
        st.binary(max_size=4),
        st.text(max_size=3).map(str.encode),
        st.sampled_from(
            [b"\xe2\x80\xa8", b"\xe2\x80", b"\xa8", b"\xed\xa0\x80", b"\xf0\x9f", b"\\"]
        ),
    ),
    max_size=12,
).map(b"".join)


@given(HARD)
@example(b"\xf0\x9f\x98\x80\xf0\x9f\x98")
def test_any_bytes_are_escaped_as_go_does(raw):
    assert escape(raw) == slow_escape(raw)


@given(st.text())
def test_text_survives_json(text):
    assert json.loads(b'"' + escape(text.encode()) + b'"') == text


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
def test_a_time_tells_each_nanosecond(ns):
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


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (999, "999ns"),
        (1_000, "1µs"),
        (1_100, "1.1µs"),
        (999_999, "999.999µs"),
        (1_000_000, "1ms"),
        (350_500_000, "350.5ms"),
        (999_999_999, "999.999999ms"),
        (S, "1s"),
        (5_878_434_044, "5.878434044s"),
        (59 * S, "59s"),
        (60 * S, "1m0s"),
        (143_100_000_000, "2m23.1s"),
        (143_116_042_009, "2m23.116042009s"),
        (3605 * S, "1h0m5s"),
        (3600 * S, "1h0m0s"),
        (100 * 3600 * S + 1, "100h0m0.000000001s"),
    ],
)
def test_durations_are_written_as_go_does(ns, text):
    assert go_duration(ns) == text


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


@pytest.mark.parametrize(
    "raw", [b"", b"a", "é€\U0001f600".encode() * 3, b"\x80" * 9 + b"a", b"a" + b"\x80" * 9]
)
def test_bytes_are_cut_between_characters_at_any_place(raw):
    for end in range(len(raw) + 2):
        place = cut(raw, end)
        assert max(0, min(end, len(raw)) - 3) <= place <= min(end, len(raw))
        assert escape(raw[:place]) + escape(raw[place:]) == escape(raw)
