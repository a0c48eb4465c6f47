"""Plays the recorded scenarios of tests/conformance, section by section."""

import asyncio
import json
import secrets
from pathlib import Path

import pytest

from tests.conformance.replay import Replay, Scenario
from tests.support.server import Server

SCENARIOS: list[Scenario] = [
    scenario
    for path in sorted((Path(__file__).parent.parent / "conformance" / "scenarios").glob("*.json"))
    for scenario in json.loads(path.read_text())
]
# In etcd users and roles are keys, and cost indexes: here they are of another order.
UNINDEXED = ("auth", "users", "access")


def chosen(mode: str) -> dict[str, list[Scenario]]:
    """The scenarios of a mode by their sections."""
    sections: dict[str, list[Scenario]] = {}
    for scenario in SCENARIOS:
        if scenario["mode"] == mode:
            sections.setdefault(scenario["section"], []).append(scenario)
    return sections


EXACT, LOOSE = chosen("exact"), chosen("loose")


def new_prefix() -> str:
    return f"c{secrets.token_hex(3)}"  # seven characters, as in the recordings


def replay(server: Server, scenario: Scenario, *, loose: bool) -> Replay:
    return Replay(scenario, ("127.0.0.1", server.port), new_prefix(), loose=loose)


@pytest.mark.parametrize("section", EXACT)
def test_exact(server: Server, section: str):
    async def play_in_turn() -> list[str]:
        failures = []
        for scenario in EXACT[section]:
            failures += await replay(server, scenario, loose=section in UNINDEXED).play()
        return failures

    assert asyncio.run(play_in_turn()) == []


@pytest.mark.parametrize("section", LOOSE)
def test_loose(server: Server, section: str):
    async def play_side_by_side() -> list[str]:
        replays = [replay(server, scenario, loose=True).play() for scenario in LOOSE[section]]
        return [failure for found in await asyncio.gather(*replays) for failure in found]

    assert asyncio.run(play_side_by_side()) == []


def test_every_scenario_is_played():
    assert sum(map(len, [*EXACT.values(), *LOOSE.values()])) == len(SCENARIOS) > 300
