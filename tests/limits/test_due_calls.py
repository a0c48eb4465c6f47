"""kvd/limits/due_calls.py: what is due at once is done in slices, and all of it."""

from kvd.limits.due_calls import DueCalls


class Loop:
    """A loop whose turns are taken one by one, on a clock that goes when something is called."""

    def __init__(self):
        self.now_s = 0.0
        self.made = []
        self._ready = []

    def call_soon(self, call):
        self._ready.append(call)

    def turn(self):
        """Return the calls of one turn."""
        ready, self._ready, self.made = self._ready, [], []
        for call in ready:
            call()
        return self.made

    def call(self, name, took_s=0.0003):
        def call():
            self.made.append(name)
            self.now_s += took_s

        return call


def due(loop):
    return DueCalls(loop, lambda: loop.now_s)


def test_a_turn_makes_no_more_of_them_than_a_slice_takes():
    loop = Loop()
    calls = due(loop)
    for number in range(10):
        calls.add(loop.call(number))
    assert [loop.turn() for _ in range(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], []]
    # One that takes long is the last one of its turn.
    calls.add(loop.call("long", 0.5))
    calls.add(loop.call("short"))
    assert [loop.turn() for _ in range(3)] == [["long"], ["short"], []]


def test_what_becomes_due_meanwhile_comes_behind():
    loop = Loop()
    calls = due(loop)

    def again():
        loop.call("again")()
        calls.add(again)

    calls.add(again)
    calls.add(loop.call("other"))
    assert loop.turn() == ["again", "other", "again", "again"]
    assert loop.turn() == ["again"] * 4


def test_a_call_that_fails_keeps_no_other_from_being_made():
    loop = Loop()
    calls = due(loop)
    for call in (loop.call(1), lambda: 1 // 0, loop.call(2)):
        calls.add(call)
    made = []
    for _ in range(3):
        try:
            made += loop.turn()
        except ZeroDivisionError:
            made += [*loop.made, "failed"]
    assert made == [1, "failed", 2]
