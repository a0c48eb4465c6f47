"""extras/watch.py: which events are for a watch, for how long, and what cannot go together."""

import pytest

from kvd.storage.format.event import Event
from kvd.storage.format.records import Change, Kind
from kvd.v2.commands import Watch
from kvd.v2.errors import INVALID_FIELD, ApiError
from kvd.v2.extras.parameters import LAST_EVENT_ID, Shape
from kvd.v2.extras.watch import Filter, as_event_stream, watch_extras
from kvd.v2.request import parse_whole


def watch(query: str) -> Watch:
    request, *_ = parse_whole("GET", b"/a", f"wait=true&{query}".encode())
    assert isinstance(request, Watch)
    return request


def extras(query: str, max_wait_s: float | None = None):
    return watch_extras(watch(query), 100, max_wait_s)


def event(key: bytes, kind: int = Kind.SET, *, refresh: bool = False) -> Event:
    return Event(Change(kind, 7, key, b"v", False, 7, refresh=refresh), None, 0)


def test_without_extras_all_but_refreshes_pass():
    found = extras("recursive=true")
    assert (found.filter, found.shape) == (Filter(b"/a"), Shape())
    assert (found.wait_timeout_s, found.progress_s, found.as_events) == (None, None, False)
    assert found.filter.passes(event(b"/a/b/c"))
    assert not found.filter.passes(event(b"/a/b", refresh=True))
    assert extras("refreshes=true").filter.passes(event(b"/a", refresh=True))


@pytest.mark.parametrize(
    ("query", "key", "kind", "passes"),
    [
        ("actions=set", b"/a", Kind.SET, True),
        ("actions=set", b"/a", Kind.CREATE, False),
        ("actions=delete,expire", b"/a", Kind.EXPIRE, True),
        ("actions=delete,expire", b"/a", Kind.COMPARE_AND_DELETE, False),
        ("recursive=true&level=1", b"/a", Kind.SET, True),
        ("recursive=true&level=1", b"/a/b", Kind.SET, True),
        ("recursive=true&level=1", b"/a/b/c", Kind.SET, False),
        ("recursive=true&level=2", b"/a/b/c", Kind.SET, True),
        # What removes the key itself is above it.
        ("recursive=true&level=1", b"/", Kind.DELETE, True),
        ("recursive=true&level=1&actions=set", b"/a/b", Kind.DELETE, False),
    ],
)
def test_a_filter_lets_pass_what_was_asked_for(query, key, kind, passes):
    assert extras(query).filter.passes(event(key, kind)) == passes


def test_levels_count_from_the_root_too():
    root = Filter(b"/", level=1)
    assert root.passes(event(b"/a"))
    assert not root.passes(event(b"/a/b"))


@pytest.mark.parametrize(
    ("query", "max_wait_s", "waits_s"),
    [
        ("", None, None),
        ("", 30.0, 30.0),
        ("waitTimeout=2.5", None, 2.5),
        ("waitTimeout=2.5", 30.0, 2.5),
        ("waitTimeout=60", 30.0, 30.0),
    ],
)
def test_no_watch_waits_longer_than_it_may(query, max_wait_s, waits_s):
    assert extras(query, max_wait_s).wait_timeout_s == waits_s


def test_a_stream_may_have_progress_and_values_a_shape():
    found = extras("stream=true&progress=5&maxValue=10&base64=true")
    assert (found.progress_s, found.shape) == (5, Shape(False, 10, base64=True))
    assert extras("keysOnly=true").shape == Shape(keys_only=True)


@pytest.mark.parametrize(
    ("query", "cause"),
    [
        ("progress=5", b'"progress" needs stream=true'),
        ("level=1", b'"level" needs recursive=true'),
        ("keysOnly=true&maxValue=3", b'"maxValue" cannot be used with "keysOnly"'),
        ("keysOnly=true&base64=true", b'"base64" cannot be used with "keysOnly"'),
        ("limit=3", b'"limit" cannot be used with "wait"'),
        ("count=true", b'"count" cannot be used with "wait"'),
        ("history=true", b'"history" cannot be used with "wait"'),
        ("maxValue=101", b'invalid value for "maxValue"'),
        ("waitTimeout=0", b'invalid value for "waitTimeout"'),
        ("waitTimeout=1e3", b'invalid value for "waitTimeout"'),
        ("actions=get", b'invalid value for "actions"'),
        ("recursive=true&level=0", b'invalid value for "level"'),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(query, cause):
    with pytest.raises(ApiError) as caught:
        extras(query)
    assert (caught.value.code, caught.value.cause, caught.value.index) == (INVALID_FIELD, cause, 0)


def test_server_sent_events_go_on_behind_the_last_one():
    plain = watch("waitIndex=3")
    first, later = as_event_stream(plain, b""), as_event_stream(plain, b"41")
    assert (first.stream, first.wait_index) == (True, 3)
    assert (later.stream, later.wait_index) == (True, 42)
    assert watch_extras(later, 100, None).as_events


@pytest.mark.parametrize("last", [b"x", b"-1", b"1.5", b"18446744073709551616"])
def test_an_id_of_no_event_is_refused(last):
    with pytest.raises(ApiError) as caught:
        as_event_stream(watch(""), last)
    assert caught.value.cause == b'invalid value for "%b"' % LAST_EVENT_ID
