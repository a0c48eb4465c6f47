"""The last events, remembered: a watch that comes back skips what is not for it, nothing else."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from kvd.core.watch.recent_events import RecentEvents
from kvd.core.watch.replay import matches_history
from kvd.core.watch.watchers import Watcher
from kvd.storage.format.event import Event
from kvd.storage.format.records import REMOVALS, Change, Kind
from kvd.storage.index.state import State
from kvd.v2.commands import Set, Watch
from tests.support.committing import on_a_loop, started
from tests.support.waiting import until

PATHS = [b"/", b"/a", b"/a/b", b"/a/b/c", b"/ab", b"/a/_h", b"/d/e"]
KEYS = PATHS[1:]


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    events = []
    for index in range(draw(st.integers(2, 5)), draw(st.integers(5, 25))):
        kind = draw(st.sampled_from([Kind.SET, Kind.UPDATE, Kind.DELETE, Kind.EXPIRE]))
        change = Change(
            kind=kind,
            index=index,
            key=draw(st.sampled_from(KEYS)),
            value=None if kind in REMOVALS else b"v",
            dir=draw(st.booleans()),
            created_index=2,
            refresh=kind == Kind.UPDATE and draw(st.booleans()),
        )
        events.append(Event(change, None, 0))
    return events


@given(histories(), st.sampled_from(PATHS), st.booleans(), st.integers(1, 30), st.integers(1, 30))
def test_the_first_event_for_a_watcher_is_found(events, path, recursive, wanted, generation):
    recent = RecentEvents(generation)
    recent.begin(events[0].change.index if events else 2)
    for event in events:
        if not event.change.refresh:
            recent.add(event.change)
    watcher = Watcher(Watch(path, recursive, False, wanted), None, wanted)
    matching = [
        event.change.index
        for event in events
        if event.change.index >= wanted and matches_history(event, watcher)
    ]
    found = recent.next_index(wanted, path, recursive=recursive)
    if found is None:
        # It does not reach back so far, because of what has come since.
        assert wanted < (events[0].change.index if events else 2) or len(events) > generation
    else:
        assert found == min(matching, default=sys.maxsize)


@on_a_loop
async def test_watches_that_come_back_read_no_events_of_others(tmp_path, monkeypatch):
    read = []
    whole = State.events

    def events(self: State, index: int):
        read.append(index)
        return whole(self, index)

    monkeypatch.setattr(State, "events", events)
    async with started(tmp_path) as engine:
        received = engine.watch(b"/mine")
        await engine.run(Set(b"/mine", b"1"), *(Set(b"/other/%d" % i, b"") for i in range(500)))
        await until(lambda: received)
        again = engine.watch(b"/mine", wait_index=3)
        assert (again, read, engine.hub.count) == ([], [], 1)
        await engine.run(Set(b"/mine", b"2"))
        await until(lambda: again)
        late = engine.watch(b"/mine", wait_index=3)
        assert b'"value":"2"' in late[0]
        assert read == [503], "only from the event itself on"


def test_what_is_remembered_is_bounded():
    recent = RecentEvents()
    recent.begin(2)
    for index in range(2, 300):
        recent.add(Change(Kind.SET, index, b"/" + b"k" * 60_000, b"", False, index))
    assert recent.next_index(2, b"/mine", recursive=False) is None, "forgotten: to be read"
    assert recent.next_index(290, b"/mine", recursive=False) == sys.maxsize
    assert recent.next_index(290, b"/", recursive=True) == 290


def test_among_very_many_directories_no_event_is_passed_over():
    recent = RecentEvents()
    recent.begin(2)
    for index in range(2, 3000):
        recent.add(Change(Kind.SET, index, b"/d/%d/k" % index, b"", False, index))
    for wanted in (2, 1500, 2999):
        for key in (b"/", b"/d", b"/d/2999", b"/none"):
            found = recent.next_index(wanted, key, recursive=True)
            assert found is not None
            assert wanted <= found
            assert found == wanted or not key.startswith(b"/d")
    assert recent.next_index(2, b"/d/2999/k", recursive=False) == 2999
