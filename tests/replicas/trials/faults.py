"""The faults of a trial. Each is begun, lasts for seconds, and is undone by `Fleet.heal`."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

from tests.replicas.trials.fleet import Fleet, places
from tests.replicas.trials.processes import Process

_LOOK_S = 0.01
_STOP_S = 30.0


async def _last(dice: Random, least_s: float, most_s: float) -> None:
    await asyncio.sleep(dice.uniform(least_s, most_s))


async def _kill(dice: Random, *processes: Process) -> None:
    for process in processes:
        process.kill()
    await _last(dice, 0.5, 3)


async def _terminate(dice: Random, process: Process) -> None:
    process.terminate()
    async with asyncio.timeout(_STOP_S):
        while not process.has_ended():
            await asyncio.sleep(_LOOK_S)
    await _last(dice, 0, 1)


async def _freeze(dice: Random, process: Process) -> None:
    process.freeze()
    await _last(dice, 4, 6)


async def _cut(dice: Random, fleet: Fleet, number: int) -> None:
    """Cut a machine off from the others; clients do not reach it either."""
    near = fleet.machine(number)
    for process in near:
        process.place.block([*places(fleet.others(number)), fleet.outside])
    await _last(dice, 4, 7)


async def kill_leader(fleet: Fleet, dice: Random) -> None:
    await _kill(dice, fleet.servers[await fleet.leader()])


async def stop_leader(fleet: Fleet, dice: Random) -> None:
    await _terminate(dice, fleet.servers[await fleet.leader()])


async def freeze_leader(fleet: Fleet, dice: Random) -> None:
    await _freeze(dice, fleet.servers[await fleet.leader()])


async def freeze_idle_leader(fleet: Fleet, dice: Random) -> None:
    """The leader is frozen with no batch in flight, and thaws with requests that it would refuse.

    They concern keys that another leader has written meanwhile.
    """
    leader = await fleet.leader()
    fleet.traffic.hush()
    await _last(dice, 0.5, 0.6)
    fleet.servers[leader].freeze()
    fleet.traffic.resume_without(leader)
    await _last(dice, 5, 6)


async def cut_leader(fleet: Fleet, dice: Random) -> None:
    await _cut(dice, fleet, await fleet.leader())


async def isolate_leader(fleet: Fleet, dice: Random) -> None:
    """The leader reaches no member of etcd; clients and the other servers reach it."""
    leader = fleet.servers[await fleet.leader()]
    leader.place.block(places(fleet.engines))
    await _last(dice, 4, 7)


async def kill_follower(fleet: Fleet, dice: Random) -> None:
    await _kill(dice, fleet.servers[await _other(await fleet.leader(), dice)])


async def freeze_follower(fleet: Fleet, dice: Random) -> None:
    await _freeze(dice, fleet.servers[await _other(await fleet.leader(), dice)])


async def cut_follower(fleet: Fleet, dice: Random) -> None:
    await _cut(dice, fleet, await _other(await fleet.leader(), dice))


async def wipe_follower(fleet: Fleet, dice: Random) -> None:
    follower = fleet.servers[await _other(await fleet.leader(), dice)]
    follower.kill()
    follower.wipe()
    await _last(dice, 0, 2)


async def kill_all(fleet: Fleet, dice: Random) -> None:
    for server in fleet.servers:
        server.kill()
    await _last(dice, 0, 0.5)


async def kill_engine_leader(fleet: Fleet, dice: Random) -> None:
    await _kill(dice, fleet.engines[await fleet.engine_leader()])


async def freeze_engine_leader(fleet: Fleet, dice: Random) -> None:
    await _freeze(dice, fleet.engines[await fleet.engine_leader()])


async def cut_engine_leader(fleet: Fleet, dice: Random) -> None:
    """The leading member of etcd reaches nothing."""
    leader = fleet.engines[await fleet.engine_leader()]
    leader.place.block(places(one for one in fleet.processes if one is not leader))
    await _last(dice, 4, 7)


async def kill_engine_follower(fleet: Fleet, dice: Random) -> None:
    await _kill(dice, fleet.engines[await _other(await fleet.engine_leader(), dice)])


async def part_engines(fleet: Fleet, dice: Random) -> None:
    """The members of etcd do not reach each other; all else reaches them."""
    first, second, third = places(fleet.engines)
    first.block([second, third])
    second.block([third])
    await _last(dice, 2, 4)


async def kill_both_leaders(fleet: Fleet, dice: Random) -> None:
    engine = fleet.engines[await fleet.engine_leader()]
    await _kill(dice, fleet.servers[await fleet.leader()], engine)


async def lose_quorum(fleet: Fleet, dice: Random) -> None:
    """Two members of etcd are frozen for four seconds."""
    for engine in dice.sample(fleet.engines, 2):
        engine.freeze()
    await _last(dice, 4, 4)


async def _other(number: int, dice: Random) -> int:
    return dice.choice([one for one in range(3) if one != number])


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and where it can be had.

    Attributes:
        of_kvd: It is of servers that are not the members of etcd themselves.
        of_three: It is of an engine of three members.
        cuts: It needs namespaces.
    """

    name: str
    begin: Callable[[Fleet, Random], Awaitable[None]]
    of_kvd: bool = False
    of_three: bool = False
    cuts: bool = False

    def is_possible(self, fleet: Fleet) -> bool:
        is_there = not (self.of_kvd and fleet.is_etcd) and (fleet.can_cut or not self.cuts)
        return is_there and (len(fleet.engines) == 3 or not self.of_three)


FAULTS = (
    Fault("leader killed", kill_leader),
    Fault("leader stopped (SIGTERM)", stop_leader),
    Fault("leader frozen 4 to 6 s", freeze_leader),
    Fault("idle leader frozen 5 to 6 s", freeze_idle_leader),
    Fault("leader's machine cut off 4 to 7 s", cut_leader, cuts=True),
    Fault("leader without etcd 4 to 7 s, clients reach it", isolate_leader, of_kvd=True, cuts=True),
    Fault("follower killed", kill_follower),
    Fault("follower frozen 4 to 6 s", freeze_follower),
    Fault("follower's machine cut off 4 to 7 s", cut_follower, cuts=True),
    Fault("follower wiped", wipe_follower, of_kvd=True),
    Fault("all servers killed at once", kill_all),
    Fault("etcd leader killed", kill_engine_leader, of_kvd=True),
    Fault("etcd leader frozen 4 to 6 s", freeze_engine_leader, of_kvd=True),
    Fault("etcd leader cut off 4 to 7 s", cut_engine_leader, of_kvd=True, cuts=True),
    Fault("etcd follower killed", kill_engine_follower, of_kvd=True, of_three=True),
    Fault("etcd members parted 2 to 4 s", part_engines, of_three=True, cuts=True),
    Fault("leader and etcd leader killed at once", kill_both_leaders, of_kvd=True),
    Fault("etcd quorum lost 4 s", lose_quorum, of_three=True),
)
