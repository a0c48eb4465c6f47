"""Lanes of a queue: addresses take turns, a lane keeps its order."""

import asyncio

from kvd.limits.turns import Lane, Turns


class Stays:
    """One that waits for a turn."""

    gone = False

    def __init__(self, name, address="h"):
        self.name, self.address = name, address


def test_addresses_take_turns_at_what_is_slow():
    loop = asyncio.new_event_loop()
    turns = Turns(loop)
    visited = []

    class Visitor(Stays):
        def take_turn(self):
            assert turns.takes_slow()
            visited.append(self.name)

    many = [Visitor(n, "many") for n in range(50)]
    for one in [*many, *(Visitor("few", "few") for _ in range(2))]:
        turns.wait(one, Lane.SLOW)
    for _ in range(5):
        loop.run_until_complete(asyncio.sleep(0))
    assert visited[:5] == [0, "few", 1, "few", 2]
    # Who has gone delays nobody.
    for one in many[:40]:
        one.gone = True
    before = len(visited)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert visited[before] == 40


def test_a_lane_keeps_its_order():
    loop = asyncio.new_event_loop()
    turns = Turns(loop)
    visited = []

    class Visitor(Stays):
        def take_turn(self):
            turns.left -= 1
            visited.append(self.name)

    for number in range(100):
        turns.wait(Visitor(number), Lane.READS)
    turns.wait(Visitor("slow"), Lane.SLOW)
    turns.wait(Visitor("write"), Lane.WRITES)
    loop.run_until_complete(asyncio.sleep(0))
    assert visited[0] == "write"
    assert "slow" in visited
    for _ in range(10):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert [name for name in visited if isinstance(name, int)] == list(range(100))


def test_one_that_has_just_come_waits_neither_for_those_ahead_nor_for_many_writes():
    loop = asyncio.new_event_loop()
    turns = Turns(loop)
    visited = []

    class Visitor(Stays):
        def take_turn(self):
            turns.left -= 2
            visited.append(self.name)

    for lane in (Lane.AHEAD, Lane.WRITES, Lane.READS):
        for _ in range(100 if lane is not Lane.READS else 10):
            turns.wait(Visitor(lane), lane)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    # All in the first turn, and before anything that came behind others; which has a share, too.
    assert visited.count(Lane.READS) == 10
    assert visited.index(Lane.AHEAD) > len(visited) - 1 - visited[::-1].index(Lane.READS)
